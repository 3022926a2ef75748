"""Demi on several replicas: speed, scaling and faults on Ray Serve. `python -m bench.scale --help` lists the sections."""
