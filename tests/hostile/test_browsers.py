"""Requests that a page of another site makes a browser send are refused before anything is done."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from demi.server.errors import ForbiddenError
from demi.server.http.origins import Origins, is_loopback, name_of
from tests.hostile.wire import exchange, request
from tests.server.fakes import message
from tests.server.processes import run_serve

ROW = message([1, 2, 3], shape=[1, 3])
EVIL = "http://evil.example"
FOREIGN = {
    "another site": [("Origin", EVIL), ("Sec-Fetch-Site", "cross-site"), ("Sec-Fetch-Mode", "no-cors")],
    "another port": [("Origin", "http://localhost:3000"), ("Sec-Fetch-Site", "same-site")],
    "an old browser": [("Origin", EVIL)],
    "a page without an origin": [("Origin", "null")],
    "a form": [("Origin", EVIL), ("Content-Type", "text/plain;charset=UTF-8")],
}
PATHS = {
    "/v2/models/scale/infer": ROW,
    "/v2/models/scale/versions/1/infer": ROW,
    "/v2/repository/models/scale/load": b"{}",
    "/v2/repository/models/scale/unload": b"",
    "/v2/models/scale/accuracy": b'{"shadow":1.0}',
    "/v2/systemsharedmemory/region/evil/register": b'{"key":"/demi_hostile","byte_size":64}',
    "/v2/systemsharedmemory/unregister": b"",
    "/v2/repository/index": b"",
    "/v2/trace/setting": b"{}",
    "/v2/logging": b"{}",
}


@contextlib.contextmanager
def shared_object(name: str) -> Iterator[Path]:
    """Return a POSIX shared memory object of 64 bytes."""
    path = Path("/dev/shm") / name
    path.write_bytes(b"S" * 64)
    try:
        yield path
    finally:
        path.unlink()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("headers", FOREIGN.values(), ids=FOREIGN.keys())
def test_a_page_of_another_site_is_refused_everywhere(victim, path, headers):
    """Every path that accepts POST answers 403, without content that a page could read."""
    (answer,) = exchange(victim, request("POST", path, headers, PATHS[path]))

    assert 403 == answer.status
    assert "access-control-allow-origin" not in answer.headers


def test_no_region_was_registered_and_no_model_unloaded(victim):
    """Refused requests have no effect: the shared memory is unchanged, and the model is still served."""
    output = {"name": "y", "parameters": {"shared_memory_region": "evil", "shared_memory_byte_size": 12}}
    headers = FOREIGN["a form"]
    with shared_object("demi_hostile") as victims:
        exchange(
            victim,
            request(
                "POST",
                "/v2/systemsharedmemory/region/evil/register",
                headers,
                PATHS["/v2/systemsharedmemory/region/evil/register"],
            ),
        )
        exchange(
            victim,
            request("POST", "/v2/models/scale/infer", headers, message([1, 2, 3], shape=[1, 3], outputs=[output])),
        )
        exchange(victim, request("POST", "/v2/repository/models/scale/unload", headers))

        assert b"S" * 64 == victims.read_bytes()
    (answer,) = exchange(victim, request("POST", "/v2/models/scale/infer", body=ROW))
    assert 200 == answer.status


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "localhost.", "ai."])
@pytest.mark.parametrize(("method", "path"), [("GET", "/v2/models/scale/config"), ("POST", "/v2/models/scale/infer")])
def test_foreign_host_names_are_refused(victim, host, method, path):
    """A page whose name resolves to this machine is of the same site for its browser; its Host header reveals it."""
    own = [("Origin", f"http://{host}"), ("Sec-Fetch-Site", "same-origin")]

    (answer,) = exchange(victim, request(method, path, own, ROW if method == "POST" else b"", host=host))

    assert 403 == answer.status
    assert b"evil" not in answer.body


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:8000", "[::1]:8000", "demi", "demi.localhost:1", ""])
def test_own_names_are_answered(victim, host):
    """Addresses, names without a dot, and localhost cannot be owned by others and are accepted."""
    (answer,) = exchange(victim, request("GET", "/v2", host=host))

    assert 200 == answer.status


def test_other_clients_and_own_pages_are_answered(victim):
    """Clients other than browsers send neither header, and the server's own page is of its own site."""
    own = [("Origin", "http://localhost"), ("Sec-Fetch-Site", "same-origin")]
    typed = [("Sec-Fetch-Site", "none")]
    older = [("Origin", "http://localhost")]
    for headers in ([], own, typed, older):
        (answer,) = exchange(victim, request("POST", "/v2/models/scale/infer", headers, ROW))
        assert 200 == answer.status


def test_health_is_open_by_any_name(victim):
    """A health probe may use any host name."""
    (answer,) = exchange(victim, request("GET", "/v2/health/live", host="pod.cluster.local"))

    assert 200 == answer.status


def test_allowed_hosts():
    """With `--allow-host` a server checks its name on every address."""
    origins = Origins(["Models.example.com"])

    origins.check("GET", {b"host": b"models.EXAMPLE.com:8000"})
    with pytest.raises(ForbiddenError, match="--allow-host"):
        origins.check("GET", {b"host": b"other.example.com"})


def test_cache_of_host_names_is_bounded():
    """A client may send any number of host names; only some are cached."""
    origins = Origins(guarded=True)
    for number in range(2000):
        with pytest.raises(ForbiddenError):
            origins.check("GET", {b"host": b"%d.example" % number})

    assert len(origins._known) <= 256


def test_loopback_addresses():
    """Loopback addresses of both families are local, and no others."""
    assert ["127.0.0.1", "127.9.9.9", "::1"] == [
        address for address in ("127.0.0.1", "127.9.9.9", "::1", "0.0.0.0", "::", "10.0.0.1") if is_loopback(address)
    ]
    assert ["a", "::1", "b.c"] == [name_of("A:1"), name_of("[::1]:1"), name_of("b.c")]


@pytest.mark.parametrize("flag", ["--allow-model-control", "--allow-shared-memory"])
def test_control_needs_a_key_on_public_addresses(models, flag):
    """On an address that others can reach, a server with control features needs keys to start; the error has a hint."""
    ended = run_serve(str(models), "--host", "0.0.0.0", "--port", "0", "--no-grpc", flag)

    assert 2 == ended.returncode
    assert flag in ended.stderr
    assert "--api-key-file" in ended.stderr
    assert "--allow-without-key" in ended.stderr
