"""Rewriting passes on the onnx-ir graph; each states what must hold before and after."""
