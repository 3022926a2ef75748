"""Copy bundles into a bucket or a registry: the manifest last, so that a reader finds a bundle complete or not at all."""

from __future__ import annotations

from pathlib import Path

from demi.bundles import manifest as manifests
from demi.bundles.bundle import open_bundle
from demi.bundles.find import bundles_at
from demi.errors import BundleError
from demi.remote.address import Address
from demi.remote.fetch import Say
from demi.remote.places import open_place


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
    place = open_place(address)
    pushed = []
    for bundle in bundles:
        name = f"{bundle.manifest.name}/{bundle.manifest.version}"
        if place.exists(name) and not force:
            raise BundleError(
                "this version is there already",
                where=f"{address.url}/{name}",
                hint="export the next version, or use --force to replace it",
            )
        say(f"uploading {name} to {address.url}")
        for file in bundle.manifest.files:
            with (bundle.path / file).open("rb") as opened:
                place.write(name, file, opened)
        pushed.append(place.finish(name, (bundle.path / manifests.MANIFEST).read_bytes()))
    return pushed
