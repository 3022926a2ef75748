"""Open sockets: idle, with half a request, busy, or in a TLS handshake; the server keeps answering others."""

from __future__ import annotations

import resource
import socket
import ssl
import time

import httpx
import pytest
import trustme

from demi.server.http.connection_limit import RESERVE, SCAN_INTERVAL_S, Admission, ConnectionLimit
from demi.server.listening import allow_files
from tests.hostile.attack import held_connections, is_closed, is_live, port_of
from tests.server.bundles import SCALE, write_bundle
from tests.server.fakes import message
from tests.server.processes import serving

MOST = 20
ROW = message([1, 2, 3], shape=[1, 3])
INFER = b"POST /v2/models/scale/infer HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(ROW)
BUSY = INFER + ROW[:-1]


class Fake:
    """Connection in a given state."""

    def __init__(self, since: tuple[bool, float] | None) -> None:
        self.since = since
        self.gone = False

    def idle_since(self) -> tuple[bool, float] | None:
        return self.since

    def evict(self) -> None:
        self.gone = True


def test_the_longest_idle_is_evicted():
    """Connections that have sent nothing are evicted before those that have begun a request; busy ones are kept."""
    connections = ConnectionLimit(4)
    busy, begun, young, old = members = [Fake(None), Fake((True, 1.0)), Fake((False, 3.0)), Fake((False, 2.0))]
    for member in members:
        assert connections.enter(member, 4.0) is Admission.FULL
    gone = []
    for _ in range(3):
        assert connections.enter(Fake(None), 5.0) is Admission.FULL
        gone.append([member.gone for member in (old, young, begun, busy)])

    assert [[True, False, False, False], [True, True, False, False], [True, True, True, False]] == gone
    assert connections.enter(Fake(None), 6.0) is Admission.HEALTH_ONLY


def test_a_flood_evicts_its_own():
    """A flood of connections beyond the limit evicts its own."""
    connections = ConnectionLimit(1)
    connections.enter(Fake(None), 0.0)
    late = [Fake(None) for _ in range(RESERVE + 2)]
    for member in late:
        assert connections.enter(member, 1.0) is Admission.HEALTH_ONLY

    assert [True, True] + [False] * RESERVE == [member.gone for member in late]


def test_candidates_are_cached():
    """Candidates are cached, so that a connection that has just become idle is found a moment later."""
    connections = ConnectionLimit(1)
    only = Fake(None)
    connections.enter(only, 0.0)
    assert connections.enter(Fake(None), 1.0) is Admission.HEALTH_ONLY
    only.since = (False, 1.0)

    assert connections.enter(Fake(None), 1.0) is Admission.HEALTH_ONLY
    assert connections.enter(Fake(None), 1.0 + 2 * SCAN_INTERVAL_S) is Admission.FULL
    assert only.gone


@pytest.mark.parametrize(("most", "expected"), [(4, Admission.FULL), (1200, Admission.HEALTH_ONLY)])
def test_few_connections_are_scanned_often(most, expected):
    """Two milliseconds after a scan, one of few connections that has become idle is found; many are not scanned again."""
    connections = ConnectionLimit(most)
    members = [Fake(None) for _ in range(most)]
    for member in members:
        connections.enter(member, 0.0)
    assert connections.enter(Fake(None), 1.0) is Admission.HEALTH_ONLY
    members[0].since = (True, 1.0)

    assert expected is connections.enter(Fake(None), 1.002)


def test_no_limit():
    """0 means no limit."""
    connections = ConnectionLimit(0)

    assert {Admission.FULL} == {connections.enter(Fake(None), 0.0) for _ in range(2000)}


@pytest.fixture(scope="module")
def victim(tmp_path_factory):
    """Return a server for twenty connections."""
    folder = tmp_path_factory.mktemp("models")
    flags = ("--max-connections", str(MOST), "--client-timeout", "30", "--no-grpc")
    with serving(write_bundle(folder / "scale", SCALE), *flags) as server:
        yield server


@pytest.mark.parametrize("first", [b"", b"GET / HTTP/1.1\r\nX: "], ids=["idle", "half a request"])
def test_idle_connections_are_evicted(victim, first):
    """With twice as many connections as allowed, half of them are closed, and probes and requests are answered."""
    with held_connections(victim.url, 2 * MOST, first) as connections:
        for _ in range(5):
            assert is_live(victim)
            assert 200 == httpx.post(victim.url + "/v2/models/scale/infer", content=ROW).status_code
        assert MOST <= sum(is_closed(connection, 0.05) for connection in connections)


def test_busy_connections_stay_and_health_is_answered(victim):
    """If every connection waits for its body, new ones get 503 except for probes, and the old ones are answered."""
    with held_connections(victim.url, MOST, BUSY) as connections:
        time.sleep(0.2)
        assert is_live(victim)
        other = httpx.post(victim.url + "/v2/models/scale/infer", content=ROW)
        with held_connections(victim.url, 3 * RESERVE):
            assert is_live(victim)
        connections[0].sendall(ROW[-1:])
        answer = connections[0].recv(65536)

    assert 503 == other.status_code
    assert "--max-connections" in other.json()["error"]
    assert "1" == other.headers["retry-after"]
    assert answer.startswith(b"HTTP/1.1 200 ")


def test_stalled_handshakes(tmp_path):
    """Stalled handshakes are closed after --client-timeout, and excess ones earlier: a client with a key connects."""
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    issued.private_key_pem.write_to_path(tmp_path / "key.pem")
    for pem in issued.cert_chain_pems:
        pem.write_to_path(tmp_path / "cert.pem", append=True)
    trust = ssl.create_default_context()
    authority.configure_trust(trust)
    flags = ("--tls-cert", str(tmp_path / "cert.pem"), "--tls-key", str(tmp_path / "key.pem"), "--client-timeout", "2")
    write_bundle(tmp_path / "models" / "scale", SCALE)
    with serving(tmp_path / "models", *flags, "--max-connections", str(MOST), "--no-grpc") as server:
        with held_connections(server.url, 2 * MOST, b"\x16\x03\x01") as connections:
            assert 200 == httpx.get(server.url + "/v2/health/live", verify=trust, timeout=5).status_code
            assert all(is_closed(connection, 10) for connection in connections)
        with socket.create_connection(("127.0.0.1", port_of(server.url)), 5) as plain:
            plain.sendall(b"GET / HTTP/1.1\r\n\r\n")
            assert is_closed(plain, 5)
        assert "Traceback" not in server.log


def test_limit_of_open_files():
    """The limit of open files is raised to both kinds of connections, up to the hard limit."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
        allow_files(100)
        raised = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        allow_files(1)
        kept = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)

    assert min(712, before[1]) == raised == kept
