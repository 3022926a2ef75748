"""Requests to an OCI registry, through oras; its only home. Errors are those of the operating system, for `explained`."""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any
from urllib.parse import urljoin, urlsplit

from demi.remote.place import MOST_MANIFEST_BYTES

IMAGE = "application/vnd.oci.image.manifest.v1+json"

TIMEOUTS_S = (10.0, 60.0)
"""Seconds to connect, and to wait for more bytes."""

_LOCAL = re.compile(r"(localhost|127\.0\.0\.1|\[::1\])(:\d+)?")
"""Hosts that are asked without TLS, as docker does."""


@dataclass(frozen=True, slots=True)
class Client:
    """A registry. Every method raises FileNotFoundError, PermissionError or OSError for what it cannot do."""

    host: str
    _oras: Any

    def tags(self, repository: str) -> list[str]:
        """Return all tags of a repository."""
        found: list[str] = []
        place = self._container(repository).tags_url()
        while place:
            page = self._ask("GET", place)
            found += page.json().get("tags") or []
            following = page.links.get("next", {}).get("url")
            place = urljoin(page.url, following) if following else ""
        return found

    def manifest(self, repository: str, reference: str) -> bytes:
        """Return the manifest of a tag or digest."""
        place = self._container(repository).manifest_url(reference)
        with contextlib.closing(self._ask("GET", place, headers={"Accept": IMAGE}, stream=True)) as response:
            data: bytes = response.raw.read(MOST_MANIFEST_BYTES, decode_content=True)
        return data

    def has_manifest(self, repository: str, reference: str) -> bool:
        """Return whether there is such a tag or digest."""
        place = self._container(repository).manifest_url(reference)
        return self._exists(place, headers={"Accept": IMAGE})

    def put_manifest(self, repository: str, tag: str, data: bytes) -> None:
        """Write a manifest, and let the tag name it."""
        self._ask("PUT", self._container(repository).manifest_url(tag), data=data, headers={"Content-Type": IMAGE})

    @contextlib.contextmanager
    def blob(self, repository: str, digest: str) -> Iterator[IO[bytes]]:
        """Open a blob to be read from its start to its end."""
        place = self._container(repository).get_blob_url(digest)
        headers = {"Accept-Encoding": "identity"}
        with contextlib.closing(self._ask("GET", place, headers=headers, stream=True)) as response:
            yield response.raw

    def put_blob(self, repository: str, digest: str, source: IO[bytes]) -> None:
        """Upload a blob, unless the registry has it."""
        from oras.utils import append_url_params

        container = self._container(repository)
        if self._exists(container.get_blob_url(digest)):
            return
        begun = self._ask("POST", container.upload_blob_url())
        place = append_url_params(urljoin(begun.url, begun.headers["location"]), {"digest": digest})
        self._ask("PUT", place, data=source, headers={"Content-Type": "application/octet-stream"})

    def _container(self, repository: str) -> Any:
        from oras.container import Container

        container = Container("any", registry=self.host)  # which would take a folder with a dot for a host
        container.repository = repository
        return container

    def _exists(self, place: str, **options: Any) -> bool:
        try:
            self._ask("HEAD", place, **options)
        except FileNotFoundError:
            return False
        return True

    def _ask(self, method: str, place: str, **options: Any) -> Any:
        """Return a successful response."""
        url = place if "://" in place else f"{self._oras.prefix}://{place}"
        response = self._request(url, method, options)
        if response.status_code == 401 and getattr(self._oras.auth, "token", None):
            self._oras.auth.token = None  # it allows reading only: another one is asked for
            response = self._request(url, method, options)
        if response.ok:
            return response
        if response.status_code == 404:
            raise FileNotFoundError(place)
        if response.status_code in (401, 403):
            raise PermissionError(f"the registry answered {response.status_code}")
        raise OSError(f"the registry answered {response.status_code}: {response.text[:200]}")

    def _request(self, url: str, method: str, options: dict[str, Any]) -> Any:
        try:
            return self._oras.do_request(url, method, **options)
        except ValueError as error:  # oras found no way to authenticate
            raise PermissionError(str(error)) from error


def open_client(host: str) -> Client:
    """Return a client of a registry, with the credentials of `docker login` or `oras login`.

    Raises PermissionError where it needs some and there are none.
    """
    from oras.container import Container

    challenge = _oras(host, "token").session.get(f"{_scheme(host)}://{host}/v2/").headers.get("www-authenticate", "")
    is_basic = challenge.lower().startswith("basic")
    client = _oras(host, "basic" if is_basic else "token")
    folder = os.environ.get("DOCKER_CONFIG")
    client.auth.load_configs(Container("any", registry=host), [f"{folder}/config.json"] if folder else None)
    if is_basic:
        if not hasattr(client.auth, "_basic_auth"):
            raise PermissionError("the registry requires a name and a password")
        client.session.auth = functools.partial(_sign, host, client.auth.get_auth_header())
    return Client(host, client)


def _sign(host: str, header: dict[str, str], request: Any) -> Any:
    """Add the credentials at once, since a body cannot be sent twice, and to this host only."""
    if urlsplit(request.url).netloc == host:
        request.headers.update(header)
    return request


def _oras(host: str, authentication: str) -> Any:
    """Return oras's client with time limits, and without its retries, which wait for two minutes altogether."""
    from oras.provider import Registry
    from requests.adapters import HTTPAdapter

    class Bounded(HTTPAdapter):
        def send(self, *args: Any, **options: Any) -> Any:
            return super().send(*args, **{**options, "timeout": options.get("timeout") or TIMEOUTS_S})

    client = Registry(host, insecure=_scheme(host) == "http", auth_backend=authentication)
    for scheme in ("http://", "https://"):
        client.session.mount(scheme, Bounded())
    client.do_request = functools.partial(inspect.unwrap(Registry.do_request), client)
    return client


def _scheme(host: str) -> str:
    return "http" if _LOCAL.fullmatch(host) else "https"
