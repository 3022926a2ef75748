"""Measuring what half precision does to a model: samples, the honest emulator, comparison, checks."""
