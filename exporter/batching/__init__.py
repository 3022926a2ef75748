"""Proof by trial that requests may be joined, split and padded."""
