"""Copy bundles into a bucket: the manifest last, so that a reader finds a bundle complete or not at all."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

from demi.bundles import manifest as manifests
from demi.bundles.bundle import open_bundle
from demi.bundles.find import bundles_at
from demi.errors import BundleError
from demi.remote.address import Address
from demi.remote.fetch import Say
from demi.remote.storage import open_storage


def push_models(source: Path, address: Address, *, force: bool = False, say: Say = lambda text: None) -> list[str]:
    """Copy every bundle at or below `source` to NAME/VERSION below the address; return the new addresses with digests.

    Digests are compared first. Raises BundleError for a version that is there already, unless `force` is set, and if
    there is nothing to copy.
    """
    bundles = [open_bundle(path) for path in bundles_at(source, every_version=True)]
    if not bundles:
        raise BundleError(
            "there is no bundle to copy", where=str(source), hint="give a folder that `demi export` wrote"
        )
    storage = open_storage(address)
    pushed = []
    for bundle in bundles:
        place = f"{bundle.manifest.name}/{bundle.manifest.version}"
        if storage.exists(f"{place}/{manifests.MANIFEST}") and not force:
            raise BundleError(
                "this version is there already",
                where=f"{address.url}/{place}",
                hint="export the next version, or use --force to replace it",
            )
        say(f"uploading {place} to {address.url}")
        for name in bundle.manifest.files:
            storage.make_folder(f"{place}/{name}".rpartition("/")[0])
            with (bundle.path / name).open("rb") as file:
                storage.write(f"{place}/{name}", file)
        data = (bundle.path / manifests.MANIFEST).read_bytes()
        storage.write(f"{place}/{manifests.MANIFEST}", io.BytesIO(data))
        pushed.append(f"{address.url}/{place}@sha256:{hashlib.sha256(data).hexdigest()}")
    return pushed
