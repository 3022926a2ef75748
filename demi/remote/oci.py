"""Bundles in OCI registries.

A bundle NAME/VERSION is the artifact HOST/FOLDER/NAME:VERSION. Each of its files is a layer with the file's path as its title,
as `oras push` writes them, so `oras pull` and every other OCI tool copies bundles as well.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO, Any

import msgspec

from demi.bundles.find import is_version
from demi.bundles.manifest import MANIFEST
from demi.errors import BundleError, DigestError, InputError, missing_package
from demi.remote.address import Address
from demi.remote.oci_client import IMAGE, Client, open_client
from demi.remote.place import CHUNK, MOST_MANIFEST_BYTES, explained

ARTIFACT = "application/vnd.demi.bundle.v1"
FILE = "application/octet-stream"
TITLE = "org.opencontainers.image.title"
EMPTY, EMPTY_BYTES = "application/vnd.oci.empty.v1+json", b"{}"
"""The configuration of an artifact that has none."""

_PART = "[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(f"{_PART}(?:/{_PART})*")
_PATH = re.compile(f"(?P<repository>(?:{_REPOSITORY.pattern})?)(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9._-]{{0,127}}))?")
_DIGEST = re.compile("sha256:[0-9a-f]{64}")


class _Layer(msgspec.Struct, frozen=True):
    digest: str
    annotations: dict[str, str] = {}


class _Manifest(msgspec.Struct, frozen=True):
    layers: list[_Layer]


@dataclass(frozen=True, slots=True)
class Registry:
    """A repository of bundles, one artifact of it, or the folder of several repositories."""

    address: Address
    _client: Client
    _repository: str
    _reference: str
    """Tag or digest of the one artifact that the address names; empty if it names a repository."""
    _read: dict[str, dict[str, str]] = field(default_factory=dict)
    """Digests by title of the artifacts that were read, by tag or digest."""
    _written: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """Layers of the bundles that are being written."""

    def bundles(self) -> list[str]:
        """Return the tags that are versions, or `` for an address that names one. Raises BundleError if there is none."""
        if self._reference:
            return [""]
        if not self._repository:
            raise BundleError(
                "registries do not list their repositories", where=str(self.address), hint="give oci://HOST/FOLDER/NAME"
            )
        with explained(self.address):
            tags = sorted((tag for tag in self._client.tags(self._repository) if is_version(tag)), key=int)
        if not tags:
            raise BundleError(
                "the repository has no tag that is a version",
                where=str(self.address),
                hint="name the tag, as in oci://HOST/NAME:TAG, or copy bundles there with demi push",
            )
        return tags

    def read(self, path: str) -> bytes:
        """Return a small file, compared with its digest. Raises BundleError for one that is missing or too large."""
        with self.open(path) as file:
            data = file.read(MOST_MANIFEST_BYTES + 1)
        if len(data) > MOST_MANIFEST_BYTES:
            raise BundleError(f"`{path}` is larger than {MOST_MANIFEST_BYTES:,} bytes", where=str(self.address))
        self._require(data, self._digest(path))
        return data

    @contextlib.contextmanager
    def open(self, path: str) -> Iterator[IO[bytes]]:
        """Open a file to be read from its start to its end. Raises BundleError for one that is missing."""
        digest = self._digest(path)
        with explained(self.address), self._client.blob(self._repository, digest) as file:
            yield file

    def exists(self, bundle: str) -> bool:
        """Return whether there is a bundle NAME/VERSION."""
        with explained(self.address):
            return self._client.has_manifest(*self._target(bundle))

    def write(self, bundle: str, name: str, source: IO[bytes]) -> None:
        """Upload a file of a bundle NAME/VERSION; one that the registry has is not sent again."""
        layer = self._upload(bundle, source)
        self._written.setdefault(bundle, []).append(layer | {"annotations": {TITLE: name}})

    def finish(self, bundle: str, manifest: bytes) -> str:
        """Upload the manifest and the artifact that names all files; return the artifact's address with its digest."""
        self.write(bundle, MANIFEST, io.BytesIO(manifest))
        artifact = {
            "schemaVersion": 2,
            "mediaType": IMAGE,
            "artifactType": ARTIFACT,
            "config": self._upload(bundle, io.BytesIO(EMPTY_BYTES)) | {"mediaType": EMPTY},
            "layers": self._written.pop(bundle),
        }
        data = msgspec.json.encode(artifact)
        repository, tag = self._target(bundle)
        with explained(self.address):
            self._client.put_manifest(repository, tag, data)
        return f"oci://{self.address.host}/{repository}:{tag}@{_digest_of(data)}"

    def _digest(self, path: str) -> str:
        """Return the digest of a file: of `manifest.json`, or of `TAG/manifest.json` in a repository."""
        reference, name = (self._reference, path) if self._reference else path.split("/", 1)
        if reference not in self._read:
            self._read[reference] = self._files(reference)
        if (digest := self._read[reference].get(name)) is None:
            raise BundleError(
                f"the artifact has no file `{name}`",
                where=str(self.address) if self._reference else f"{self.address}:{reference}",
                hint="it is not a bundle that demi push or oras push has copied",
            )
        return digest

    def _files(self, reference: str) -> dict[str, str]:
        with explained(self.address):
            data = self._client.manifest(self._repository, reference)
        if self.address.digest:
            self._require(data, reference)
        try:
            found = msgspec.json.decode(data, type=_Manifest)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise BundleError(f"the registry's manifest cannot be read: {error}", where=str(self.address)) from error
        for layer in found.layers:
            if not _DIGEST.fullmatch(layer.digest):
                raise BundleError(f"`{layer.digest[:80]}` is not a SHA-256 digest", where=str(self.address))
        return {layer.annotations.get(TITLE, ""): layer.digest for layer in found.layers}

    def _require(self, data: bytes, digest: str) -> None:
        """Raise DigestError unless the registry returned what it was asked for."""
        if _digest_of(data) != digest:
            raise DigestError(
                "the registry returned something else than its digest promises",
                where=f"{self.address} ({digest})",
                hint="it is damaged: copy the bundle there again",
            )

    def _upload(self, bundle: str, source: IO[bytes]) -> dict[str, Any]:
        """Upload a blob; return its descriptor."""
        digest = hashlib.sha256()
        while chunk := source.read(CHUNK):
            digest.update(chunk)
        layer = {"mediaType": FILE, "digest": f"sha256:{digest.hexdigest()}", "size": source.tell()}
        source.seek(0)
        with explained(self.address):
            self._client.put_blob(self._target(bundle)[0], str(layer["digest"]), source)
        return layer

    def _target(self, bundle: str) -> tuple[str, str]:
        """Return the repository and the tag of a bundle NAME/VERSION. Raises InputError for a name it cannot have."""
        name, _, version = bundle.rpartition("/")
        repository = f"{self._repository}/{name}".lstrip("/")
        if self._reference:
            raise InputError("the address has a tag", where=str(self.address), hint="give oci://HOST/FOLDER")
        if not _REPOSITORY.fullmatch(repository):
            raise InputError(
                f"`{repository}` cannot be a repository of a registry",
                where=str(self.address),
                hint="names there have small letters, digits, `.`, `_` and `-`: export the model with -o models/NAME",
            )
        return repository, version


def open_registry(address: Address) -> Registry:
    """Return the repository at an address.

    Raises PackageError without oras, and InputError for an address that a registry cannot have.
    """
    if importlib.util.find_spec("oras") is None:
        raise missing_package("oras", "oci")
    found = _PATH.fullmatch(address.url.partition("://")[2].partition("/")[2])
    if found is None:
        raise InputError(
            "this is not the address of a repository", where=str(address), hint="give oci://HOST/FOLDER/NAME:VERSION"
        )
    reference = f"sha256:{address.digest}" if address.digest else found["tag"] or ""
    with explained(address):
        return Registry(address, open_client(address.host), found["repository"], reference)


def _digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"
