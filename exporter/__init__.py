"""Convert trained FP32 models to half-precision bundles: read, plan, convert, verify."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from demi.exporter.api import Converted, convert, convert_file

__all__ = ["Converted", "convert", "convert_file"]


def __getattr__(name: str) -> Any:
    """Import the API on first use, so that reading a plan needs no onnx."""
    if name in __all__:
        from demi.exporter import api as module

        return getattr(module, name)
    raise AttributeError(f"module 'exporter' has no attribute `{name}`")
