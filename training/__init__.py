"""Training in half precision: FP32 master weights, dynamic loss scaling, and a reason for every step that is skipped.

`loop.py` tells the story. This package and `exporter/pytorch/` are the only ones that import PyTorch.
"""
