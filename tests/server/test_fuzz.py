"""Fuzz the HTTP application: every request is answered quickly and never with a server failure.

Requests have malformed headers, lengths, shapes, datatypes, numbers and encodings. Each starts from a valid request and
breaks parts of it, so that it passes the first checks.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import time
import zlib
from collections.abc import Iterator
from urllib.parse import quote, unquote

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from demi.bundles.manifest import BatchSpec
from demi.server.http.app import create_app
from demi.server.models.loading import Loaded
from demi.server.models.model import Model
from demi.server.models.repository import Repository
from demi.server.protocol.signature import Signature
from demi.server.settings import ServeSettings
from demi.tensors import DType
from tests.server.bundles import SCALE, TYPES, session_of

LIMIT = 20_000
SOON_S = 3.0
COMMON = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])

numbers = st.one_of(
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=True),
    st.sampled_from([0, -1, 2**31, 2**53, 2**63, 2**64, 1e400, 65504, 65520.0, -0.0]),
)
scalars = st.one_of(st.none(), st.booleans(), numbers, st.text(max_size=8))
anything = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
)
shapes = st.one_of(
    st.lists(st.one_of(st.integers(0, 4), st.sampled_from([-1, 3, 10**9, 2**40, 2**63, 2**64])), max_size=5), anything
)
datatypes = st.one_of(st.sampled_from([dtype.value for dtype in DType]), st.sampled_from(["fp32", "FP8", ""]), anything)
sizes = st.one_of(st.integers(-2, 40), st.sampled_from([2**31, 2**63, 2**64, "12", 1.5, None, True]), anything)
parameters = st.one_of(
    st.dictionaries(
        st.sampled_from(
            ["binary_data_size", "binary_data_output", "binary_data", "classification", "timeout", "precision", "other"]
        ),
        st.one_of(sizes, scalars),
        max_size=4,
    ),
    anything,
)
inputs = st.fixed_dictionaries(
    {
        "name": st.one_of(st.sampled_from(["x", "flag", "text", "half", "large"]), scalars),
        "datatype": datatypes,
        "shape": shapes,
    },
    optional={"data": st.one_of(st.lists(scalars, max_size=9), anything), "parameters": parameters},
)
messages = st.fixed_dictionaries(
    {"inputs": st.one_of(st.lists(inputs, max_size=4), anything)},
    optional={
        "id": scalars,
        "parameters": parameters,
        "outputs": st.one_of(
            st.lists(
                st.fixed_dictionaries({"name": st.one_of(st.just("y"), scalars)}, optional={"parameters": parameters})
            ),
            anything,
        ),
        "unknown": anything,
    },
)
header_values = st.one_of(
    st.none(),
    st.integers(-3, 400).map(str),
    st.sampled_from(["0", "", "1e3", "0x10", "٣", "99999999999999999999", "12, 12", "+1", "gzip", "deflate", "br"]),
    st.text(st.characters(min_codepoint=32, max_codepoint=255, exclude_characters="\x7f"), max_size=12),
)
HEADERS = (
    "inference-header-content-length", "content-encoding", "accept-encoding", "x-request-id", "traceparent", "content-type",
)  # fmt: skip
headers = st.fixed_dictionaries({}, optional=dict.fromkeys(HEADERS, header_values))
bodies = st.one_of(
    messages.map(lambda message: json.dumps(message).encode()),
    st.binary(max_size=200),
    st.builds(
        lambda depth, text: text * depth, st.integers(1, 4000), st.sampled_from([b"[", b'{"a":', b'{"inputs":['])
    ),
)


class Application:
    """The application of a server without a network: requests one after the other, on one event loop."""

    def __init__(self, app: ASGIApp, runner: asyncio.Runner) -> None:
        self._app = app
        self._runner = runner

    def ask(self, path: str, body: bytes, sent: dict[str, str], method: str = "POST") -> int:
        """Return the status of an answer; it must be quick, well formed, and not a server failure."""
        status, answer = self._runner.run(asyncio.wait_for(self._ask(path, body, sent, method), SOON_S))
        assert status < 500, answer
        if status >= 400:
            assert ["error"] == list(orjson.loads(answer))
        return status

    async def _ask(self, path: str, body: bytes, sent: dict[str, str], method: str) -> tuple[int, bytes]:
        headers = [(name.encode(), value.encode()) for name, value in sent.items()]
        scope = {
            "type": "http", "http_version": "1.1", "method": method, "scheme": "http", "path": unquote(path),
            "raw_path": path.encode(), "query_string": b"", "root_path": "", "client": None, "server": ("x", 80),
            "headers": [*headers, (b"content-length", b"%d" % len(body))],
        }  # fmt: skip
        messages = [{"type": "http.request", "body": body, "more_body": False}]
        answer: list[Message] = []

        async def receive() -> Message:
            return messages.pop() if messages else await asyncio.get_running_loop().create_future()

        async def send(message: Message) -> None:
            answer.append(message)

        await self._app(scope, receive, send)
        return answer[0]["status"], b"".join(message["body"] for message in answer[1:])


@pytest.fixture(scope="module")
def app() -> Iterator[Application]:
    """Create an application with one batched model, one with all datatypes, and a small body limit."""
    repository = Repository([model_of("scale", SCALE, free=True), model_of("types", TYPES, free=False)])
    with asyncio.Runner() as runner:
        yield Application(create_app(repository, ServeSettings(max_body_bytes=LIMIT)), runner)
    repository.close(1)


def model_of(name: str, text: str, *, free: bool) -> Model:
    """Return a model with a real session."""
    session = session_of(text)
    model = Model(name, "1", ServeSettings(max_queue=8))
    model.start(
        Loaded((session,), Signature(session.inputs, session.outputs, BatchSpec(free=free, max_size=8)), "fp16")
    )
    return model


@COMMON
@given(st.sampled_from(["scale", "types", "nope"]), bodies, headers)
def test_any_request_is_answered(app, model, body, sent):
    """Messages with arbitrary values anywhere, arbitrary bytes, and contradictory headers are answered."""
    app.ask(f"/v2/models/{model}/infer", body, {name: value for name, value in sent.items() if value is not None})


@COMMON
@given(messages, st.binary(max_size=64), st.integers(-40, 40), st.integers(0, 2))
def test_any_length_is_answered(app, message, tail, off, packing):
    """Binary requests with slightly wrong lengths, compressed or not, truncated or not, are answered."""
    head = json.dumps(message).encode()
    pack, encoding = ((bytes, ""), (gzip.compress, "gzip"), (zlib.compress, "deflate"))[packing]
    body = pack(head + tail)
    sent = {"inference-header-content-length": str(len(head) + off)} | (
        {"content-encoding": encoding} if encoding else {}
    )
    app.ask("/v2/models/scale/infer", body, sent)
    app.ask("/v2/models/scale/infer", body[: len(body) - abs(off)], sent)


@COMMON
@given(
    st.sampled_from([dtype.value for dtype in DType]), st.binary(max_size=40), st.lists(st.integers(0, 5), max_size=3)
)
def test_any_bytes_are_answered(app, datatype, data, shape):
    """Tensors with matching or wrong bytes are answered: lengths inside BYTES, booleans of 7, subnormal halves."""
    size = {"binary_data_size": len(data)}
    entry = {"name": "x", "datatype": datatype, "shape": shape, "parameters": size}
    text = {"name": "text", "datatype": "BYTES", "shape": [len(shape)], "parameters": size}
    for model, given_input in (("scale", entry), ("types", text)):
        head = orjson.dumps({"inputs": [given_input]})
        app.ask(f"/v2/models/{model}/infer", head + data, {"inference-header-content-length": str(len(head))})


@COMMON
@given(st.text(max_size=20), st.sampled_from(["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"]), bodies)
def test_any_path_is_answered(app, name, method, body):
    """Paths with arbitrary names and any method are answered."""
    quoted = quote(name, safe="")
    for path in (
        f"/v2/models/{quoted}/infer",
        f"/v2/models/scale/versions/{quoted}/infer",
        f"/v2/models/{quoted}/ready",
    ):
        assert app.ask(path, body, {}, method) in (200, 400, 404, 405)
    app.ask("/v2/repository/index", body, {})
    app.ask(f"/v2/repository/models/{quoted}/load", body, {})


def test_zip_bomb_takes_no_memory(app):
    """A zip bomb is decompressed up to the limit only, and refused at once."""
    engine = zlib.compressobj(9, wbits=31)
    bomb = b"".join(engine.compress(bytes(10**6)) for _ in range(19)) + engine.flush()
    assert len(bomb) < LIMIT < 19 * 10**6
    started = time.perf_counter()
    status = app.ask("/v2/models/scale/infer", bomb, {"content-encoding": "gzip"})

    assert 413 == status
    assert time.perf_counter() - started < SOON_S


@pytest.mark.parametrize("status", [500, 400, 0])
def test_the_check_can_fail(status):
    """The check notices a server failure, a malformed error, and a request that hangs."""

    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        if not status:
            await asyncio.sleep(10 * SOON_S)
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b'{"detail":"x"}'})

    with asyncio.Runner() as runner, pytest.raises((AssertionError, TimeoutError)):
        Application(broken, runner).ask("/", b"", {})
