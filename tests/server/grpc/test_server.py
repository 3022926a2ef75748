"""The gRPC server in this process: authorization, TLS, and invalid messages."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import grpc
import pytest
import trustme

from demi.server.errors import ForbiddenError
from demi.server.grpc.health import HealthCheckRequest
from demi.server.grpc.inference import (
    ModelInferRequest,
    ModelReadyRequest,
    ModelStreamInferResponse,
    ServerLiveRequest,
)
from demi.server.grpc.server import GrpcServer
from demi.server.listening import bind
from demi.server.models.control import Control
from demi.server.models.model import Model
from demi.server.models.repository import Repository
from demi.server.protocol.shared_memory import NO_SHARED_MEMORY
from demi.server.settings import ServeSettings
from tests.server.fakes import loaded, open_fake
from tests.server.grpc_client import HEALTH, INFERENCE, X, method

Ask = Callable[[GrpcServer], Awaitable[object]]


def with_server(ask: Ask, control: Control | None = None, **options: object) -> object:
    """Run a coroutine while a server with the model `double` runs on this event loop."""

    async def run() -> object:
        model = Model("double", "1", ServeSettings(max_queue=4))
        model.start(loaded(open_fake()))
        repository = Repository([model])
        reserved = bind("127.0.0.1", 0)
        server = GrpcServer(reserved, repository, ServeSettings(), control, NO_SHARED_MEMORY, **options)
        await server.start()
        try:
            return await asyncio.wait_for(ask(server), 20)
        finally:
            await server.stop(0)
            repository.close(1)

    return asyncio.run(run())


def only_with_key(metadata: Sequence[tuple[str, str]]) -> None:
    """Refuse calls without the test key."""
    if dict(metadata).get("x-api-key") != "open sesame":
        raise ForbiddenError("a key is needed", hint="send x-api-key")


async def code_of(call: Awaitable[object]) -> str:
    """Return the status code of a call."""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error.code().name
    return "OK"


def row() -> ModelInferRequest:
    """Return a request with one row for `double`."""
    request = ModelInferRequest(model_name="double", raw_input_contents=[X.tobytes()])
    request.inputs.add(name="x", datatype="FP32", shape=[1, 3])
    return request


def test_callers_without_a_key():
    """All methods except health checks call `authorize`, streams included."""

    async def ask(server: GrpcServer) -> list[str]:
        async with grpc.aio.insecure_channel(server.address) as channel:
            ready, infer = method(channel, "ModelReady"), method(channel, "ModelInfer")
            stream = channel.stream_stream(f"/{INFERENCE}/ModelStreamInfer")()
            return [
                await code_of(ready(ModelReadyRequest(name="double"))),
                await code_of(infer(row())),
                await code_of(stream.read()),
                await code_of(method(channel, "ServerLive")(ServerLiveRequest())),
                await code_of(method(channel, "Check", HEALTH)(HealthCheckRequest())),
                await code_of(infer(row(), metadata=(("x-api-key", "open sesame"),))),
            ]

    denied = "PERMISSION_DENIED"

    assert [denied, denied, denied, "OK", "OK", "OK"] == with_server(ask, authorize=only_with_key)


def test_tls():
    """With TLS, clients that trust the certificate are answered, plain ones are not."""
    authority = trustme.CA()
    own = authority.issue_cert("127.0.0.1")
    credentials = grpc.ssl_server_credentials([(own.private_key_pem.bytes(), own.cert_chain_pems[0].bytes())])
    trusting = grpc.ssl_channel_credentials(authority.cert_pem.bytes())

    async def ask(server: GrpcServer) -> list[str]:
        async with (
            grpc.aio.secure_channel(server.address, trusting) as secure,
            grpc.aio.insecure_channel(server.address) as plain,
        ):
            return [await code_of(method(channel, "ModelInfer")(row())) for channel in (secure, plain)]

    assert ["OK", "UNAVAILABLE"] == with_server(ask, credentials=credentials)


@pytest.mark.parametrize("data", [b"\xff", b"\x0a\xff", b"\x0a\x01\xff", bytes(100)])
def test_invalid_bytes(data):
    """Invalid bytes are a client error, and a stream continues after them."""

    async def ask(server: GrpcServer) -> tuple[str, ModelStreamInferResponse, ModelStreamInferResponse]:
        async with grpc.aio.insecure_channel(server.address) as channel:
            code = await code_of(channel.unary_unary(f"/{INFERENCE}/ModelInfer")(data))
            stream = channel.stream_stream(
                f"/{INFERENCE}/ModelStreamInfer", response_deserializer=ModelStreamInferResponse.FromString
            )()
            await stream.write(data)
            await stream.write(row().SerializeToString())
            await stream.done_writing()
            return code, await stream.read(), await stream.read()

    code, wrong, right = with_server(ask)

    assert "INVALID_ARGUMENT" == code
    assert "the message is not a valid inference.ModelInferRequest" in wrong.error_message
    assert not right.error_message
    assert right.infer_response.outputs[0].name == "y"


def test_an_unknown_method():
    """An unknown method is UNIMPLEMENTED, and the server continues."""

    async def ask(server: GrpcServer) -> str:
        async with grpc.aio.insecure_channel(server.address) as channel:
            return await code_of(channel.unary_unary(f"/{INFERENCE}/ModelThink")(b""))

    assert "UNIMPLEMENTED" == with_server(ask)
