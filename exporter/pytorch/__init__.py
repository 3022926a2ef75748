"""PyTorch models to ONNX: the only folder that imports torch; start with `read.py`."""
