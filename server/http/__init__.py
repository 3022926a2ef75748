"""The Open Inference Protocol over HTTP; `app.py` has every path."""
