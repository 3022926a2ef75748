"""Demi over HTTP and gRPC beside ONNX Runtime in a bare loop and other servers: see `__main__.py` for the command."""
