"""Check of a session against the manifest of its bundle."""

from __future__ import annotations

from demi.bundles.manifest import Manifest
from demi.errors import BundleError
from demi.runtime.base import Session
from demi.tensors import TensorSpec


def check_session(session: Session, manifest: Manifest) -> None:
    """Raise BundleError unless names and shapes of the model's tensors match the manifest.

    Dtypes are not compared: a reference may take FP32 where the half model takes FP16.
    """
    for kind, found, promised in (
        ("inputs", session.inputs, manifest.inputs),
        ("outputs", session.outputs, manifest.outputs),
    ):
        if _outline(found) != _outline(promised):
            raise BundleError(
                f"the model's {kind} are {_listed(found)}, but the manifest declares {_listed(promised)}",
                hint="export the model again",
            )


def _outline(specs: tuple[TensorSpec, ...]) -> list[tuple[str, list[int]]]:
    return [(spec.name, spec.wire_shape) for spec in specs]


def _listed(specs: tuple[TensorSpec, ...]) -> str:
    return ", ".join(map(str, specs)) or "none"
