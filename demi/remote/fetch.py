"""Bring the models of an address onto this machine, and keep them as they are there."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

from demi.bundles import manifest as manifests
from demi.bundles.bundle import writing
from demi.bundles.drafts import locked
from demi.bundles.find import models_below, versions
from demi.errors import DigestError
from demi.remote.address import Address
from demi.remote.cache import Cache
from demi.remote.place import Place
from demi.remote.places import open_place

Say = Callable[[str], None]


def fetch_models(address: Address, cache: Cache, say: Say = lambda text: None) -> Path:
    """Return a folder of models as they are at the address; only files that this machine lacks are downloaded.

    Versions that are gone there are removed here. Raises BundleError or DigestError for damaged bundles, and StorageError
    or InputError if the storage cannot be read; the folder is then as it was, apart from bundles that were complete.
    """
    remote = open_place(address)
    folder = cache.served(str(address))
    with locked(folder):
        found = {_fetch_bundle(remote, path, folder, cache, say) for path in remote.bundles()}
        _remove_all_but(found, folder)
    return folder


def _fetch_bundle(remote: Place, path: str, folder: Path, cache: Cache, say: Say) -> Path:
    """Bring one bundle; return its folder NAME/VERSION."""
    where = f"{remote.address.url}/{path}".rstrip("/")
    data = remote.read(_below(path, manifests.MANIFEST))
    _require_pinned(data, remote.address)
    manifest = manifests.decode(data, where)
    place = folder / manifest.name / str(manifest.version)
    if _is_there(place, data):
        return place
    total = sum(entry.bytes for entry in manifest.files.values())
    say(f"downloading {manifest.name} v{manifest.version}: {total / 2**20:,.1f} MiB from {where}")
    with writing(place, force=True) as draft:
        for name, entry in manifest.files.items():
            blob = cache.fetch(entry, partial(remote.open, _below(path, name)), name)
            cache.link(blob, draft / name)
        (draft / manifests.MANIFEST).write_bytes(data)
    return place


def _require_pinned(data: bytes, address: Address) -> None:
    """Raise DigestError unless the manifest is the one that the address names; a registry has compared its own."""
    if address.scheme != "oci" and address.digest is not None and hashlib.sha256(data).hexdigest() != address.digest:
        raise DigestError(
            "the bundle is not the one that the address names: the digest of its manifest differs",
            where=str(address),
            hint="somebody has replaced it; take the digest of the new one if that was intended",
        )


def _is_there(place: Path, manifest: bytes) -> bool:
    """Return whether the same bundle is here already; its files were compared when they arrived."""
    try:
        return (place / manifests.MANIFEST).read_bytes() == manifest
    except OSError:
        return False


def _remove_all_but(found: set[Path], folder: Path) -> None:
    for model in models_below(folder):
        for version in versions(model):
            if (bundle := model / str(version)) not in found:
                shutil.rmtree(bundle, ignore_errors=True)


def _below(path: str, name: str) -> str:
    return f"{path}/{name}" if path else name
