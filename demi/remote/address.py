"""Addresses of remote models: `s3://bucket/models`, `gs://...`, `oci://host/minilm:1`, `https://host/models@sha256:...`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from demi.errors import InputError

PACKAGES = {
    "s3": "s3fs",
    "gs": "gcsfs",
    "oci": "oras",
    "https": "aiohttp",
    "http": "aiohttp",
    "file": "fsspec",
    "memory": "fsspec",
}
"""Schemes, and the package that reads each; `file` and `memory` are for tries and tests."""

_ADDRESS = re.compile(r"(?P<url>(?P<scheme>[a-z][a-z0-9+]*)://[^@\s]+?)/?(@sha256:(?P<digest>[0-9a-fA-F]+))?")


@dataclass(frozen=True, slots=True)
class Address:
    """A folder of models, a model or one bundle in a bucket, in a registry or on a web server."""

    url: str
    scheme: str
    digest: str | None = None
    """SHA-256 of the one bundle's manifest.json, which holds the digests of its files; in a registry that of its own
    manifest, as in all OCI tools. None to trust the place."""

    @property
    def host(self) -> str:
        """The bucket or host, with its port if there is one."""
        return self.url.partition("://")[2].partition("/")[0]

    def __str__(self) -> str:
        return self.url if self.digest is None else f"{self.url}@sha256:{self.digest}"


def parse_address(text: str) -> Address | None:
    """Return the address in a text; None for a path on this machine. Raises InputError for an address Demi cannot read."""
    if "://" not in text:
        return None
    match = _ADDRESS.fullmatch(text)
    if match is None or match["scheme"] not in PACKAGES:
        raise InputError(
            f"`{text}` is not an address of models that Demi reads",
            hint="give s3://BUCKET/FOLDER, gs://BUCKET/FOLDER, oci://HOST/NAME:VERSION or https://HOST/FOLDER, with @sha256:DIGEST "
            "for one bundle",
        )
    if match["digest"] is not None and len(match["digest"]) != 64:
        raise InputError(f"`{match['digest']}` is not a SHA-256 digest, which has 64 hexadecimal digits")
    return Address(match["url"], match["scheme"], match["digest"] and match["digest"].lower())


def models_argument(text: str) -> Path | Address:
    """Parse an argument that may be a path or an address, for argparse."""
    return parse_address(text) or Path(text)
