"""Writing a model beside nothing or in a file's place: its files appear complete or not at all."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from demi.bundles.drafts import draft_beside
from demi.calibration.sessions import save_model
from demi.errors import BundleError


def check_model_target(target: Path) -> None:
    """Raise BundleError for a target that exists and is not a file: a folder, or a device that a file would replace."""
    if target.exists() and not target.is_file():
        raise BundleError(
            "the target exists and is not a file", where=str(target), hint="give the path of a new or regular file"
        )


def write_model(model: ir.Model, target: Path) -> None:
    """Write a model to `target`, weights beyond 2 GiB to `TARGET.data`; BundleError when that cannot be done."""
    try:
        with draft_beside(target) as draft:
            save_model(model, draft / target.name)
            # The graph goes last: weights without a graph are harmless, a graph without its weights is not.
            for name in sorted((path.name for path in draft.iterdir()), key=lambda name: name == target.name):
                (draft / name).replace(target.parent / name)
    except OSError as error:
        raise BundleError(
            f"the model cannot be written: {error.strerror or error}",
            where=str(target),
            hint="check that its folder exists, free space and permissions",
        ) from error
