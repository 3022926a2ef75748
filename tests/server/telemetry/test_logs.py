"""Log formats, request ids, and the access log of a real server."""

from __future__ import annotations

import logging
from datetime import datetime

import httpx
import orjson
import pytest

from demi.server.request_ids import valid_id
from demi.server.telemetry.logs import ConsoleFormatter, JsonFormatter
from tests.server.bundles import FRAGILE, SCALE, write_bundle
from tests.server.fakes import message
from tests.server.processes import serving

INFER = "/v2/models/scale/infer"
ROW = message([1, 2, 3], shape=[1, 3])


def record(text: object, *arguments: object, error: Exception | None = None, **added: object) -> logging.LogRecord:
    """Return the record of `log.info(text, *arguments, extra=added)`."""
    info = (type(error), error, error.__traceback__) if error else None
    made = logging.LogRecord("demi.server", logging.INFO, "file.py", 1, text, arguments, info)
    vars(made).update(added)
    return made


def as_json(made: logging.LogRecord) -> dict[str, object]:
    """Return the JSON line of a record."""
    line = JsonFormatter().format(made)
    assert "\n" not in line
    return dict(orjson.loads(line))


def test_a_line_of_json():
    """A JSON line has fixed members, the time in UTC, named arguments and extras."""
    line = as_json(record("model loaded: name=%s rows=%d and %s", "m", 3, "more", request_id="r"))

    assert datetime.fromisoformat(str(line.pop("ts"))).utcoffset().total_seconds() == 0
    assert {
        "level": "info",
        "logger": "demi.server",
        "message": "model loaded: name=m rows=3 and more",
        "name": "m",
        "rows": 3,
        "request_id": "r",
    } == line


@pytest.mark.parametrize(
    ("text", "arguments", "members"),
    [
        ("100%% sure: level=%s", ("high",), {}),  # a name that a line has already keeps its meaning
        ("%s then b=%.1f", (1, 2.0), {"b": 2.0}),
        ("nothing", (), {}),
        (ValueError("no text"), (), {}),
        ("path=%s", (b"\xff",), {"path": "b'\\xff'"}),
        ("path=%s", ("\udc80",), {"path": "?"}),
    ],
)
def test_named_arguments(text, arguments, members):
    """Arguments after `name=` become members, whatever their type."""
    line = as_json(record(text, *arguments))

    assert members == {name: value for name, value in line.items() if name not in ("ts", "level", "logger", "message")}
    assert "info" == line["level"]


def test_a_trace_is_a_member():
    """The traceback is a member of the line."""
    assert "ValueError: why" in str(as_json(record("failed", error=ValueError("why")))["trace"])


def test_a_line_for_people():
    """The console line ends with extras, a traceback follows, and client text cannot start a new line."""
    text = ConsoleFormatter().format(record("no model %s", "a\nb", error=ValueError("why"), request_id="r"))
    first, *trace = text.splitlines()

    assert first.endswith("INFO no model a\\nb request_id=r")
    assert "  | ValueError: why" == trace[-1]


@pytest.mark.parametrize("sent", ["\x1b[2J", "\0", "\x7f", "\x9b1m", "\u2028"])
def test_terminal_escapes_are_shown(sent):
    """Terminal escapes in client text are shown, not executed."""
    text = ConsoleFormatter().format(record("no model %s", sent))

    assert text.endswith("INFO no model " + repr(sent)[1:-1])


@pytest.mark.parametrize(("sent", "taken"), [("a-1_B.c", True), ("x" * 128, True), ("", False), ("x" * 129, False)])
def test_valid_ids(sent, taken):
    """Ids of up to 128 printable characters are valid."""
    assert (sent if taken else "") == valid_id(sent)


@pytest.mark.parametrize("sent", ["a b", "a\nb", "ä", "\x7f"])
def test_invalid_ids(sent):
    """Ids that could break a header or a log line are not valid."""
    assert "" == valid_id(sent)


def test_id_is_returned(client):
    """The client's id is returned on all paths and statuses; successful answers get no generated one."""
    sent = {"x-request-id": "mine"}
    answers = [
        client.get("/v2", headers=sent),
        client.get("/nope", headers=sent),
        client.post(INFER, content=ROW, headers=sent),
        client.post(INFER, content=b"{", headers=sent),
        client.get(INFER, headers=sent),
    ]

    assert [200, 404, 200, 400, 405] == [answer.status_code for answer in answers]
    assert {"mine"} == {answer.headers["x-request-id"] for answer in answers}
    assert {1} == {len(answer.headers.get_list("x-request-id")) for answer in answers}
    assert "x-request-id" not in client.post(INFER, content=ROW).headers
    assert "x-request-id" not in client.get("/v2").headers


def test_errors_have_an_id(client, server):
    """Errors contain the id of the body if it was read, else a generated one; never an invalid one."""
    failing = {
        "inputs": [
            {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]},
            {"name": "shape", "shape": [2], "datatype": "INT64", "data": [3, 3]},
        ],
        "id": "of-the-body",
    }
    answer = client.post("/v2/models/fragile/infer", content=orjson.dumps(failing))
    made = client.get("/nope", headers={"x-request-id": "not fit"}).headers["x-request-id"]

    assert (500, "of-the-body") == (answer.status_code, answer.headers["x-request-id"])
    assert answer.json()["error"].endswith("request id of-the-body")
    assert server.said("request_id=of-the-body")
    assert 12 == len(made)


def test_a_server_that_logs_json(tmp_path):
    """All lines are JSON objects; failures and requests contain their ids."""
    write_bundle(tmp_path / "scale" / "1", SCALE)
    write_bundle(tmp_path / "fragile" / "1", FRAGILE)
    with serving(tmp_path, "--log-format", "json", "--access-log") as server:
        httpx.post(server.url + INFER, content=ROW, headers={"x-request-id": "good"})
        httpx.get(server.url + "/v2/models/a%0Ab", headers={"x-request-id": "bad"})
        assert server.said('"bad"')
        lines = [orjson.loads(line) for line in server.lines]

    requests = {line["request_id"]: line for line in lines if "request_id" in line}
    assert server.url == next(line["url"] for line in lines if line["message"].startswith("serving"))
    assert {"scale", "fragile"} == {line["name"] for line in lines if line["message"].startswith("model loaded")}
    assert ("POST", INFER, 200) == tuple(requests["good"][name] for name in ("method", "path", "status"))
    assert ("/v2/models/a\nb", 404) == (requests["bad"]["path"], requests["bad"]["status"])
    assert requests["good"]["ms"] > 0


def test_requests_are_not_logged_by_default(client, server):
    """By default requests are not logged: a line costs more than a small request."""
    client.get("/v2/models/nope-unlogged")

    assert "nope-unlogged" not in server.log
