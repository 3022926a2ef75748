"""From a trained FP32 model to a half-precision bundle: reading, planning, converting, proving."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from demi.exporter.api import Converted, convert, convert_file

__all__ = ["Converted", "convert", "convert_file"]


def __getattr__(name: str) -> Any:
    """`exporter.convert` is imported when it is first used, so that reading a plan needs no onnx."""
    if name in __all__:
        from demi.exporter import api as module

        return getattr(module, name)
    raise AttributeError(f"module 'exporter' has no attribute `{name}`")
