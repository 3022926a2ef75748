"""Demi's version, for code below `demi` and for the build."""

__version__ = "0.2.0"
