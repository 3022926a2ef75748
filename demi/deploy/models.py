"""The models of a folder, as far as a deployment depends on them: names, sizes, batches."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from demi.bundles.bundle import open_bundle
from demi.bundles.find import bundles_at
from demi.errors import BundleError


@dataclass(frozen=True, slots=True)
class DeployedModel:
    """A model with all its versions: a server loads every version that it finds."""

    name: str
    versions: tuple[int, ...]
    file_bytes: int
    """Size of the files of all versions."""
    max_batch: int
    """Most rows of one run of the newest version; 1 if requests are never joined."""


def read_models(folder: Path) -> tuple[DeployedModel, ...]:
    """Return the models at or below a folder, by name. Files are not compared with their digests.

    Raises BundleError if there is no bundle, if one cannot be opened, or if two folders hold models of one name.
    """
    bundles = [open_bundle(path, verify=False) for path in bundles_at(folder, every_version=True)]
    if not bundles:
        raise BundleError(
            "the folder holds no bundle" if folder.exists() else "no such folder",
            where=str(folder),
            hint="create a bundle with: demi export --fp16 model.pt",
        )
    by_name: dict[str, list[tuple[int, int, int]]] = {}
    for bundle in bundles:
        manifest = bundle.manifest
        size = sum(entry.bytes for entry in manifest.files.values())
        batch = manifest.batch.max_size if manifest.batch.joins else 1
        by_name.setdefault(manifest.name, []).append((manifest.version, size, batch))
    return tuple(_model(name, sorted(found), folder) for name, found in sorted(by_name.items()))


def _model(name: str, found: list[tuple[int, int, int]], folder: Path) -> DeployedModel:
    versions = tuple(version for version, _, _ in found)
    if len(set(versions)) < len(versions):
        raise BundleError(
            f"two bundles are version {max(versions, key=versions.count)} of `{name}`",
            where=str(folder),
            hint="a server would refuse one of them: remove one, or export it with another --name",
        )
    return DeployedModel(name, versions, sum(size for _, size, _ in found), found[-1][2])
