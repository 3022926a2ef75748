"""Generating models of transformers folders: their parts as ONNX, their rules as data, and samples of real generation."""
