"""The place that an address stands for: a bucket, a registry or a web server."""

from __future__ import annotations

from demi.remote.address import Address
from demi.remote.oci import open_registry
from demi.remote.place import Place
from demi.remote.storage import open_storage


def open_place(address: Address) -> Place:
    """Return the place at an address. Credentials come from where each cloud's own tools look for them.

    Raises PackageError, naming the extra, when a package for its scheme is missing, and InputError for an address that
    a registry cannot have.
    """
    return open_registry(address) if address.scheme == "oci" else open_storage(address)
