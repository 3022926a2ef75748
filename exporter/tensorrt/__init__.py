"""TensorRT engines beside a bundle; `build.py` tells the story."""
