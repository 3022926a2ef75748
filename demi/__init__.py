"""Demi: half-precision inference you can trust.

This package holds the ground that `exporter`, `calibration` and `server` share, and the command line.
"""

from __future__ import annotations

__version__ = "0.2.0"
