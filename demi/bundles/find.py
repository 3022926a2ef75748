"""Find bundles in a version's folder, a model's folder or a folder of models, and the next version of a model."""

from __future__ import annotations

from pathlib import Path

from demi.bundles import manifest as manifests
from demi.errors import BundleError

MOST_NAMED = 8
"""Models that an error lists by name."""


def is_version(name: str) -> bool:
    """Return whether a folder's name is a version as Demi writes it: `1`, not `01`."""
    return name.isascii() and name.isdecimal() and str(int(name)) == name


def versions(model_folder: Path) -> list[int]:
    """Return the versions below a model's folder that hold a manifest, in rising order."""
    if not model_folder.is_dir():
        return []
    found = (
        entry for entry in model_folder.iterdir() if is_version(entry.name) and (entry / manifests.MANIFEST).is_file()
    )
    return sorted(int(entry.name) for entry in found)


def next_version(model_folder: Path) -> int:
    """Return the version after the highest folder with a version's name, with or without a manifest; 1 if there is none."""
    if not model_folder.is_dir():
        return 1
    return max((int(entry.name) for entry in model_folder.iterdir() if is_version(entry.name)), default=0) + 1


def version_to_write(model_folder: Path, version: int | None, *, force: bool) -> int:
    """Return the version that an export writes: the one given, else the next; with `force`, the newest that there is."""
    if version is not None:
        return version
    existing = versions(model_folder)
    return existing[-1] if force and existing else next_version(model_folder)


def models_below(path: Path) -> list[Path]:
    """Return the folders of models directly below a folder, by name; hidden ones, such as drafts, are skipped."""
    if not path.is_dir():
        return []
    folders = sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    return [folder for folder in folders if _is_model(folder)]


def bundles_at(path: Path, *, every_version: bool = False) -> list[Path]:
    """Return the folders of the bundles at or below `path`: the newest version of each model, or every version.

    Empty if there is none.
    """
    if _is_bundle(path):
        return [path]
    if found := versions(path):
        return [path / str(version) for version in (found if every_version else found[-1:])]
    return [bundle for model in models_below(path) for bundle in bundles_at(model, every_version=every_version)]


def bundle_at(path: Path) -> Path:
    """Return the folder of the one bundle that `path` stands for: a version's folder, or a model's newest version.

    A folder with a single model stands for that model. Raises BundleError if there is no bundle, or if there are several
    models, whose names it lists.
    """
    found = bundles_at(path)
    if len(found) == 1:
        return found[0]
    if found:
        raise _several_models(path)
    if not path.exists():
        raise BundleError(
            "no such bundle", where=str(path), hint=f"create one with: demi export --fp16 model.pt -o {path}"
        )
    raise BundleError(
        "this is not a bundle: there is neither manifest.json nor a version's folder with one",
        where=str(path),
        hint="give the folder that `demi export` printed",
    )


def _is_bundle(path: Path) -> bool:
    return (path / manifests.MANIFEST).is_file()


def _is_model(folder: Path) -> bool:
    try:
        return _is_bundle(folder) or bool(versions(folder))
    except OSError:  # a folder of somebody else
        return False


def _several_models(path: Path) -> BundleError:
    models = models_below(path)
    names = ", ".join(str(path / model.name) for model in models[:MOST_NAMED])
    more = f" and {len(models) - MOST_NAMED} more" if len(models) > MOST_NAMED else ""
    return BundleError(f"the folder holds {len(models)} models", where=str(path), hint=f"choose one: {names}{more}")
