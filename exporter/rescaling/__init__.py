"""Exact rescaling: constants multiplied by powers of two so that every tensor fits half, and no answer changes.

`rescale.py` tells the story; `docs/precision.md` has the proof and its limits.
"""
