"""The Open Inference Protocol over HTTP; `app.py` lists every path."""
