"""Request smuggling: no body is read as a request, and no request is lost."""

from __future__ import annotations

import orjson
import pytest

from demi.server.http.header_checks import RefusedHeadError, path_of, without_upgrade
from tests.hostile.conftest import KEY
from tests.hostile.wire import exchange, request
from tests.server.bundles import slow_turns
from tests.server.fakes import message

INFER = "/v2/models/scale/infer"
ROW = message([1, 2, 3], shape=[1, 3])
HIDDEN = b"GET /v2/models/slow HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
"""A request that must not be executed when it is part of a body."""
LAST = request()
UPGRADE = [("Connection", "Upgrade, HTTP2-Settings"), ("Upgrade", "h2c"), ("HTTP2-Settings", "AAMAAABkAAQ")]


@pytest.mark.parametrize("path", [INFER, "/v2/repository/index"])
@pytest.mark.parametrize("split", [False, True])
def test_body_after_an_upgrade(victim, path, split):
    """The bytes after an upgrade request are its body, in one segment or in two."""
    head = request("POST", path, UPGRADE, HIDDEN, last=False).removesuffix(HIDDEN)

    answers = exchange(victim, *([head, HIDDEN, LAST] if split else [head + HIDDEN + LAST]))

    assert [400, 200] == [answer.status for answer in answers]


def test_a_request_to_upgrade_is_answered_in_http_1(victim):
    """Clients that offer HTTP/2, such as Java's, get an HTTP/1.1 response, and their body is read."""
    asked = request("POST", INFER, UPGRADE, ROW, last=False)

    first, second, last = exchange(victim, asked + asked, LAST)

    assert (200, 200, 200) == (first.status, second.status, last.status)
    assert b"[2.0,6.0,12.0]" in first.body
    assert first.body == second.body


def test_many_upgrades_in_one_segment_are_answered_each(victim):
    """A thousand upgrade requests in one segment are answered without recursion."""
    asked = request("GET", headers=UPGRADE, last=False)

    assert [200] * 1001 == [answer.status for answer in exchange(victim, asked * 1000 + LAST)]


DOUBTFUL = {
    "a length and chunks": b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks and a length": b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    "two lengths": b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
    "one length twice": b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
    "a list of lengths": b"Content-Length: 5, 5\r\n\r\nhello",
    "a length with a sign": b"Content-Length: +5\r\n\r\nhello",
    "a length of nothing": b"Content-Length:\r\n\r\nhello",
    "a space before the colon": b"Content-Length : 5\r\n\r\nhello",
    "another coding": b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "identity": b"Transfer-Encoding: identity\r\n\r\n",
    "chunks that are not last": b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "chunks, then none": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
    "a control in the coding": b"Transfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n",
    "a chunk with a prefix": b"Transfer-Encoding: chunked\r\n\r\n0x5\r\nhello\r\n0\r\n\r\n",
    "a chunk with a bare line feed": b"Transfer-Encoding: chunked\r\n\r\n5\nhello\n0\n\n",
    "a line feed in a chunk's extension": b"Transfer-Encoding: chunked\r\n\r\n5;a=\nb\r\nhello\r\n0\r\n\r\n",
    "a chunk beyond counting": b"Transfer-Encoding: chunked\r\n\r\nfffffffffffffffffff\r\nhello\r\n0\r\n\r\n",
    "a length in the trailers": b"Transfer-Encoding: chunked\r\n\r\n0\r\nContent-Length: 5\r\n\r\n",
    "a bare line feed": b"X: y\n\r\n",
    "a bare carriage return": b"X: y\rZ: z\r\n\r\n",
    "a folded line": b"X: y\r\n z\r\n\r\n",
    "a zero byte": b"X: y\x00z\r\n\r\n",
    "two hosts": b"Host: other\r\nContent-Length: 0\r\n\r\n",
    "two content types": b"Content-Type: a/b\r\nContent-Type: c/d\r\nContent-Length: 0\r\n\r\n",
    "two encodings": b"Content-Encoding: gzip\r\nContent-Encoding: identity\r\nContent-Length: 0\r\n\r\n",
    "two lengths of the JSON": b"Inference-Header-Content-Length: 1\r\nInference-Header-Content-Length: 2\r\n\r\n",
}


@pytest.mark.parametrize("doubtful", DOUBTFUL.values(), ids=DOUBTFUL.keys())
def test_ambiguous_heads_are_refused(victim, doubtful):
    """An ambiguous head is answered with 400, and nothing behind it is executed."""
    answers = exchange(victim, f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\n".encode() + doubtful + HIDDEN)

    assert [(400, "close")] == [(answer.status, answer.headers["connection"]) for answer in answers]


LINES = {
    "a tunnel": b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n",
    "a tunnel to a path": b"CONNECT /v2 HTTP/1.1\r\nHost: x\r\n\r\n",
    "a port beyond all": b"GET http://a:99999999/ HTTP/1.1\r\nHost: x\r\n\r\n",
    "a URL without a host": b"GET http:/// HTTP/1.1\r\nHost: x\r\n\r\n",
    "a URL of another scheme": b"GET ftp://a/v2 HTTP/1.1\r\nHost: x\r\n\r\n",
    "the preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/2 in words": b"GET /v2 HTTP/2.0\r\nHost: x\r\n\r\n",
    "HTTP/0.9": b"GET /v2\r\n\r\n",
    "chunks in HTTP/1.0": b"POST /v2 HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "no host": b"GET /v2 HTTP/1.1\r\n\r\n",
    "no method": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
}


@pytest.mark.parametrize("line", LINES.values(), ids=LINES.keys())
def test_request_lines_for_other_hosts_are_refused(victim, line):
    """A request line for another host is refused, nothing behind it is executed, and the log has no traceback."""
    answers = exchange(victim, line + HIDDEN)

    assert [400] == [answer.status for answer in answers]
    assert b"error" in answers[0].body
    assert "Traceback" not in victim.log


@pytest.mark.parametrize("line", [LINES["a tunnel"], LINES["a port beyond all"], LINES["no host"]])
def test_running_requests_are_answered_before_a_refusal(victim, line):
    """A request that is still running is answered, whatever its client sends after it."""
    x = [0.0] * 65536
    turns = {"name": "turns", "shape": [], "datatype": "INT64", "data": [slow_turns(0.2)]}
    slow = orjson.dumps({"inputs": [turns, {"name": "x", "shape": [256, 256], "datatype": "FP32", "data": x}]})

    answers = exchange(victim, request("POST", "/v2/models/slow/infer", body=slow, last=False) + line)

    assert [200, 400] == [answer.status for answer in answers]


def test_a_whole_url_is_its_path(victim):
    """The absolute form of a URL, which proxies send, gets the same response."""
    answers = exchange(victim, request("GET", "http://localhost/v2/health/live", last=False), LAST)

    assert [200, 200] == [answer.status for answer in answers]
    assert answers[0].body == answers[1].body


def test_chunk_extensions_are_ignored(victim):
    """Chunk extensions are ignored, and the next request is read correctly."""
    head = f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    chunks = b"%x;a=b;c\r\n%s\r\n0\r\n\r\n" % (len(ROW), ROW)

    assert [200, 200] == [answer.status for answer in exchange(victim, head + chunks + LAST)]


def test_requests_after_close_are_not_executed(victim):
    """Requests after `Connection: close` are not answered."""
    assert [200] == [answer.status for answer in exchange(victim, LAST + HIDDEN)]


def test_expect_100_continue(victim):
    """A client that expects `100 Continue` gets it, and its body is read."""
    head = request("POST", INFER, [("Expect", "100-continue")], ROW).removesuffix(ROW)

    answers = exchange(victim, head, ROW)

    assert [100, 200] == [answer.status for answer in answers]


OTHER = "another-key-for-the-tests"


@pytest.mark.parametrize("path", [INFER, "/v2/models/scale"])
@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([("X-API-Key", KEY)], 200),
        ([("Authorization", f"Bearer {KEY}")], 200),
        ([("X-API-Key", KEY), ("X-API-Key", "wrong")], 400),
        ([("X-API-Key", "wrong"), ("X-API-Key", KEY)], 400),
        ([("Authorization", f"Bearer {KEY}"), ("authorization", "Bearer wrong")], 400),
        ([("X-API-Key", "wrong"), ("Authorization", f"Bearer {KEY}")], 401),
        ([("Authorization", f"Bearer {KEY}"), ("X-API-Key", OTHER)], 401),
        ([("X-API-Key", f"{KEY}, wrong")], 401),
    ],
)
def test_a_request_has_one_key(locked, path, headers, status):
    """Two keys are refused in any order, on every path."""
    method, body = ("POST", ROW) if path == INFER else ("GET", b"")

    assert [status] == [answer.status for answer in exchange(locked, request(method, path, headers, body))]


@pytest.mark.parametrize(
    ("url", "path"),
    [
        (b"/v2?a=b", b"/v2?a=b"),
        (b"*", b"/*"),
        (b"http://a", b"/"),
        (b"http://a?b", b"/?b"),
        (b"https://a:1/v2?b#c", b"/v2?b"),
        (b"http://a//evil/", b"//evil/"),
    ],
)
def test_the_path_of_a_target(url, path):
    """The path and query of every form of a target are recognized."""
    assert path == path_of(url)


def test_a_target_without_a_path_is_refused():
    """A target with only a host is meant for a proxy and is refused."""
    with pytest.raises(RefusedHeadError):
        path_of(b"x:1")


def test_removed_upgrade_keeps_other_headers():
    """Removing an upgrade keeps the other headers and the other tokens of `Connection`."""
    headers = [(b"host", b"x"), (b"connection", b"close, Upgrade"), (b"upgrade", b"h2c"), (b"content-length", b"3")]

    expected = b"POST /a HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 3\r\n\r\n"
    assert expected == without_upgrade(b"POST", b"/a", "1.1", headers)
