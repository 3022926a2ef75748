"""TensorRT engines beside a bundle; start with `build.py`."""
