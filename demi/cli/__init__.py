"""The command line: one module for each command; start reading at `main.py`."""
