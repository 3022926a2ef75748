"""Read both models of a bundle as graphs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx_ir as ir

from demi.bundles.bundle import Bundle
from demi.errors import BundleError
from demi.tensors import TensorSpec


def read_models(bundle: Bundle) -> tuple[ir.Model, ir.Model]:
    """Return the FP32 reference and the half model. Raises BundleError for one that is missing or unlike the manifest."""
    if bundle.reference_path is None:
        raise BundleError(
            "the bundle holds no FP32 reference to compare with",
            where=str(bundle.path),
            hint="export it without --no-reference",
        )
    return _read(bundle, bundle.reference_path), _read(bundle, bundle.model_path)


def _read(bundle: Bundle, path: Path) -> ir.Model:
    try:
        model = ir.load(path)
    except Exception as error:
        raise BundleError(
            f"`{path.name}` cannot be read: {error}", where=str(bundle.path), hint="export the model again"
        ) from error
    for kind, values, specs in (
        ("inputs", model.graph.inputs, bundle.manifest.inputs),
        ("outputs", model.graph.outputs, bundle.manifest.outputs),
    ):
        if not _are(values, specs):
            raise BundleError(
                f"the {kind} of `{path.name}` are not those in the manifest: {', '.join(map(str, specs)) or 'none'}",
                where=str(bundle.path),
                hint="export the model again",
            )
    return model


def _are(values: Sequence[ir.Value], specs: Sequence[TensorSpec]) -> bool:
    """Return whether names and known sizes agree; types may differ: the reference takes FP32 where half is declared."""
    return [value.name for value in values] == [spec.name for spec in specs] and all(
        value.shape is None
        or (
            len(value.shape) == len(spec.shape)
            and all(
                not (isinstance(a, int) and isinstance(b, int)) or a == b
                for a, b in zip(value.shape, spec.shape, strict=True)
            )
        )
        for value, spec in zip(values, specs, strict=True)
    )
