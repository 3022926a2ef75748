"""Where a model comes from, apart from PyTorch: options, ONNX files, transformers folders."""
