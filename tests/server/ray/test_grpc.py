"""gRPC methods of a replica: Demi's handlers, called as Ray calls them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import pytest

from demi.server.grpc.health import HealthCheckRequest, HealthCheckResponse
from demi.server.grpc.inference import ModelInferResponse, ModelStreamInferResponse
from demi.server.grpc.server import service_methods
from demi.server.keys import Keys
from demi.server.memory_limit import NO_LIMIT
from demi.server.models.model import Model
from demi.server.models.repository import Repository
from demi.server.protocol.shared_memory import NO_SHARED_MEMORY
from demi.server.ray.grpc import SERVICES, GrpcMethods, add_servicer
from demi.server.settings import ServeSettings
from tests.server.fakes import loaded, open_fake
from tests.server.grpc.test_traces import request

KEY = "a-key-of-the-test-suite"


class Context:
    """Ray's context of a call, as far as replicas use it."""

    def __init__(self, *metadata: tuple[str, str]) -> None:
        self.metadata = metadata
        self.code: Any = None
        self.details = ""
        self.trailing: list[tuple[str, str]] = []

    def invocation_metadata(self) -> list[tuple[str, str]]:
        return list(self.metadata)

    def set_code(self, code: grpc.StatusCode) -> None:
        self.code = code

    def set_details(self, details: str) -> None:
        self.details = details

    def set_trailing_metadata(self, metadata: list[tuple[str, str]]) -> None:
        self.trailing = [("request_id", "rays"), *metadata]  # a list, as Ray adds it to one


@pytest.fixture
def replica() -> Iterator[GrpcMethods]:
    """Start the gRPC methods of a replica with one model, `double`, and an API key."""
    model = Model("double", "1")
    model.start(loaded(open_fake()))
    settings = ServeSettings(max_body_bytes=2000)
    made = GrpcMethods()
    made.grpc_services = service_methods(
        Repository([model]), settings, None, NO_SHARED_MEMORY, NO_LIMIT, Keys([KEY]).authorize
    )
    yield made
    model.close()


def with_key() -> Context:
    """Return the context of a call with the key."""
    return Context(("x-api-key", KEY))


def test_ray_learns_every_method():
    """All methods of both services, one service at a time, since Ray looks at the first of several handlers only."""

    class Server:
        def __init__(self) -> None:
            self.added: list[tuple[grpc.GenericRpcHandler, ...]] = []

        def add_generic_rpc_handlers(self, handlers: tuple[grpc.GenericRpcHandler, ...]) -> None:
            self.added.append(handlers)

    server = Server()
    add_servicer(None, server)

    assert [1] * len(SERVICES) == [len(handlers) for handlers in server.added]
    names = [path for (handler,) in server.added for path in handler._method_handlers]
    assert "/inference.GRPCInferenceService/ModelInfer" in names
    assert all(hasattr(GrpcMethods, path.rpartition("/")[2]) for path in names)


def test_a_call_is_answered(replica):
    """Bytes in, and something that serializes to bytes out; the trailing metadata is Demi's."""
    context = with_key()

    answer = asyncio.run(replica.ModelInfer(request().SerializeToString(), context))

    found = ModelInferResponse.FromString(answer.SerializeToString())
    assert ("double", "mine") == (found.model_name, found.id)
    assert "demi-precision" in dict(context.trailing)


def test_an_error_is_the_status_of_the_call(replica):
    """It is not raised: Ray would log a traceback for each wrong request."""
    context = with_key()

    answer = asyncio.run(replica.ModelInfer(request("nope").SerializeToString(), context))

    assert b"" == answer.SerializeToString()
    assert grpc.StatusCode.NOT_FOUND == context.code
    assert "unknown model `nope`" in context.details


def test_a_call_without_a_key_is_refused(replica):
    """As over HTTP."""
    context = Context()
    asyncio.run(replica.ModelInfer(request().SerializeToString(), context))

    assert grpc.StatusCode.UNAUTHENTICATED == context.code


def test_a_message_beyond_the_limit_is_refused(replica):
    """Ray receives messages of any size."""
    context = with_key()
    asyncio.run(replica.ModelInfer(b"x" * 2001, context))

    assert grpc.StatusCode.RESOURCE_EXHAUSTED == context.code


def test_a_stream_is_answered_in_order(replica):
    """A wrong request in the middle gets an error message, and the stream goes on."""

    async def sent() -> AsyncIterator[bytes]:
        for name in ("double", "nope", "double"):
            yield request(name).SerializeToString()

    async def converse() -> list[ModelStreamInferResponse]:
        answers = replica.ModelStreamInfer(sent(), with_key())
        return [ModelStreamInferResponse.FromString(each.SerializeToString()) async for each in answers]

    found = asyncio.run(converse())

    assert ["", "unknown model", ""] == [each.error_message[:13] for each in found]


def test_a_client_that_leaves_a_stream_ends_its_work(replica):
    """Closing the answers ends reading the requests."""
    ended = []

    async def sent() -> AsyncIterator[bytes]:
        try:
            while True:
                yield request().SerializeToString()
                await asyncio.sleep(0.01)
        finally:
            ended.append(True)

    async def leave() -> None:
        requests = sent()
        answers = replica.ModelStreamInfer(requests, with_key())
        await anext(answers)
        await answers.aclose()
        await asyncio.sleep(0.05)
        await requests.aclose()

    asyncio.run(leave())

    assert [True] == ended


def test_the_health_service_answers(replica):
    """It needs no key."""
    answer = asyncio.run(replica.Check(HealthCheckRequest().SerializeToString(), Context()))

    assert HealthCheckResponse.SERVING == HealthCheckResponse.FromString(answer.SerializeToString()).status
