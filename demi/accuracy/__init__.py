"""The accuracy budget and the comparison of outputs: pure NumPy."""
