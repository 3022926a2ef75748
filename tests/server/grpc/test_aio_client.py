"""tritonclient's asyncio clients over gRPC and HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import numpy as np
import tritonclient.grpc.aio as grpc_aio
import tritonclient.http as triton_http
import tritonclient.http.aio as http_aio

from tests.server.grpc_client import X, given


def row(value: float) -> np.ndarray:
    """Return an input of `scale`."""
    return np.full((1, 3), value, np.float32)


def test_many_requests_at_once(server):
    """Concurrent requests on one channel each get their own answer."""

    async def ask() -> list[list[list[float]]]:
        async with grpc_aio.InferenceServerClient(server.grpc) as client:
            results = await asyncio.gather(*(client.infer("scale", [given("x", row(i), "FP32")]) for i in range(32)))
            return [result.as_numpy("y").tolist() for result in results]

    assert [[[2 * i, 3 * i, 4 * i]] for i in range(32)] == asyncio.run(ask())


def test_a_long_stream(server):
    """A stream with more requests than may be in flight is answered in order."""

    async def requests() -> AsyncIterator[dict[str, object]]:
        for i in range(300):
            yield {"model_name": "scale", "inputs": [given("x", row(i), "FP32")], "request_id": str(i)}

    async def ask() -> list[tuple[str, float]]:
        got = []
        async with grpc_aio.InferenceServerClient(server.grpc) as client:
            async for result, error in client.stream_infer(requests()):
                assert error is None
                got.append((result.get_response().id, float(result.as_numpy("y")[0, 0])))
        return got

    assert [(str(i), 2.0 * i) for i in range(300)] == asyncio.run(ask())


def test_http_with_an_event_loop(server):
    """The aio client works over HTTP, with JSON and binary."""

    async def ask() -> list[list[list[float]]]:
        async with http_aio.InferenceServerClient(urlsplit(server.url).netloc) as client:
            found = []
            for binary in (True, False):
                x = triton_http.InferInput("x", [1, 3], "FP32")
                x.set_data_from_numpy(X, binary_data=binary)
                found.append((await client.infer("scale", [x])).as_numpy("y").tolist())
            return found

    assert [[[2, 6, 12]]] * 2 == asyncio.run(ask())
