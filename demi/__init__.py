"""Half-precision inference you can trust.

    import demi

    demi.export("model.pt2", "models/minilm", samples="samples.npz")
    model = demi.load("models/minilm")
    outputs = model(input_ids=ids, attention_mask=mask)

`docs/python.md` has every function with examples. Importing this package is quick and works with any set of extras:
what a function needs is imported when it is first called.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from demi.version import __version__

if TYPE_CHECKING:
    from demi.api import check, export, serve
    from demi.exporter.api import convert, convert_file
    from demi.exporter.rescaling.api import rescale
    from demi.model import Model, load
    from demi.training.watch import watch

__all__ = ["Model", "__version__", "check", "convert", "convert_file", "export", "load", "rescale", "serve", "watch"]

_HOMES = {
    "Model": "demi.model",
    "check": "demi.api",
    "convert": "demi.exporter.api",
    "convert_file": "demi.exporter.api",
    "export": "demi.api",
    "load": "demi.model",
    "rescale": "demi.exporter.rescaling.api",
    "serve": "demi.api",
    "watch": "demi.training.watch",
}
"""The module of each public name."""


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module 'demi' has no attribute `{name}`")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
