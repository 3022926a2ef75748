"""A registry in this process, which speaks the OCI distribution specification as far as bundles need it."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.server
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import parse_qs, urlsplit

PAGE = 2
"""Tags of one page."""


@dataclass
class Registry:
    """The content of a registry, and the requests that it got."""

    host: str = ""
    password: str = ""
    """With one, every request needs it, by Basic authentication of the user `me`."""
    tokens: bool = False
    """With them, the password buys a token for one scope, as large registries have it."""
    blobs: dict[str, bytes] = field(default_factory=dict)
    manifests: dict[tuple[str, str], bytes] = field(default_factory=dict)
    """By repository and reference: a tag, or a digest."""
    requests: list[tuple[str, str]] = field(default_factory=list)


def digest(data: bytes) -> str:
    """Return a digest as registries write it."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    registry: Registry

    def log_message(self, *_: object) -> None:
        """Log nothing."""

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("content-length", 0)))

    def _answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"content-length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _serve(self) -> None:
        body, url = self._body(), urlsplit(self.path)
        self.registry.requests.append((self.command, self.path))
        if self.registry.password and (challenge := self._challenge(url.path)):
            self._answer(401, www_authenticate=challenge)
            return
        if url.path == "/token":
            self._answer(200, json.dumps({"token": parse_qs(url.query)["scope"][0]}).encode())
            return
        match = re.fullmatch(r"/v2/(?:(.+)/(blobs/uploads|blobs|manifests|tags)/(.*))?", url.path)
        if match is None:
            self._answer(404)
        elif match[1] is None:
            self._answer(200, b"{}")
        else:
            {"blobs/uploads": self._upload, "blobs": self._blob, "manifests": self._manifest, "tags": self._tags}[
                match[2]
            ](match[1], match[3], parse_qs(url.query), body)

    def _challenge(self, path: str) -> str:
        """Return what a request must have and lacks; empty if it lacks nothing."""
        secret = base64.b64encode(f"me:{self.registry.password}".encode()).decode()
        sent = self.headers.get("authorization")
        if not self.registry.tokens or path == "/token":
            return "" if sent == f"Basic {secret}" else 'Basic realm="test"'
        scope = "pull" if self.command in ("GET", "HEAD") else "pull,push"
        if sent in (f"Bearer {scope}", "Bearer pull,push"):
            return ""
        return f'Bearer realm="http://{self.registry.host}/token",service="test",scope="{scope}"'

    do_GET = do_HEAD = do_POST = do_PUT = _serve  # noqa: N815 - names of http.server

    def _upload(self, name: str, _: str, query: dict[str, list[str]], body: bytes) -> None:
        if self.command == "POST":
            self._answer(202, location=f"/v2/{name}/blobs/uploads/1?state=x")
        elif digest(body) != query["digest"][0] or query["state"] != ["x"]:
            self._answer(400)
        else:
            self.registry.blobs[digest(body)] = body
            self._answer(201, location=f"/v2/{name}/blobs/{digest(body)}")

    def _blob(self, _: str, reference: str, __: dict[str, list[str]], ___: bytes) -> None:
        found = self.registry.blobs.get(reference)
        self._answer(404) if found is None else self._answer(200, found)

    def _manifest(self, name: str, reference: str, _: dict[str, list[str]], body: bytes) -> None:
        if self.command == "PUT":
            self.registry.manifests |= {(name, reference): body, (name, digest(body)): body}
            self._answer(201)
            return
        found = self.registry.manifests.get((name, reference))
        kind = "application/vnd.oci.image.manifest.v1+json"
        self._answer(404) if found is None else self._answer(200, found, content_type=kind)

    def _tags(self, name: str, _: str, query: dict[str, list[str]], __: bytes) -> None:
        tags = sorted(tag for each, tag in self.registry.manifests if each == name and ":" not in tag)
        if not tags:
            self._answer(404)
            return
        last = query.get("last", [""])[0]
        rest = [tag for tag in tags if tag > last]
        page = rest[:PAGE]
        more = {"link": f'</v2/{name}/tags/list?last={page[-1]}>; rel="next"'} if len(rest) > PAGE else {}
        self._answer(200, json.dumps({"name": name, "tags": page}).encode(), **more)


@contextlib.contextmanager
def registry() -> Iterator[Registry]:
    """Start an empty registry for the length of a block."""
    content = Registry()
    handler = type("Handler", (_Handler,), {"registry": content})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    content.host = f"127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield content
    server.shutdown()
    server.server_close()
    thread.join()
