"""PyTorch models to ONNX: the only folder that imports torch; `read.py` tells the story."""
