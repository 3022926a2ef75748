"""Bundles for tests of files only: the model in them is arbitrary bytes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from demi.bundles.bundle import Golden, write_golden, write_manifest, writing
from demi.bundles.manifest import Manifest
from tests.demi.bundles.test_manifest import MANIFEST

GOLDEN = Golden(
    [{"x": np.float32([1, 2])}, {"x": np.float32([3])}], [{"y": np.float32([2, 4])}, {"y": np.float32([6])}]
)


def fill(draft: Path, model: bytes = b"a model", version: int = 1) -> Manifest:
    """Write every file of a bundle into a draft."""
    (draft / "model.onnx").write_bytes(model)
    write_golden(draft, GOLDEN)
    return write_manifest(draft, replace(MANIFEST, version=version))


def make_bundle(folder: Path, version: int = 1, model: bytes = b"a model") -> Path:
    """Write an intact bundle to `folder/version`."""
    target = folder / str(version)
    with writing(target) as draft:
        fill(draft, model, version)
    return target


def names(folder: Path) -> list[str]:
    """Return the names of everything below a folder, hidden drafts included."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))
