"""Code that all runtimes share on an NVIDIA GPU; `bindings.py` is the only module that imports cuda.bindings."""
