"""gRPC in Ray Serve: Demi's handlers as methods of a replica, and calls as those handlers expect them.

Ray's servers pass serialized messages through, since Demi's handlers have no serializers: a method of the replica takes
bytes, and returns something that serializes to bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from dataclasses import dataclass
from typing import Any

from demi.server.grpc.calls import MethodHandlers, generic_handler, method_handlers
from demi.server.grpc.messages import service
from demi.server.grpc.server import HEALTH, INFERENCE

SERVICES = (INFERENCE, HEALTH)

_UNREAD = 1
"""Answers of a stream that may wait for Ray to take them."""


def add_servicer(servicer: Any, server: Any) -> None:
    """Make a gRPC server of Ray know Demi's methods: `grpc_servicer_functions: [demi.ray.add_servicer]`.

    Ray replaces what the methods do by calls to a replica.
    """
    for name in SERVICES:
        server.add_generic_rpc_handlers((generic_handler(name, method_handlers(name, _Unused())),))


class _Unused:
    """Stands for the functions of a service whose calls Ray takes elsewhere."""

    def __getattr__(self, name: str) -> None:
        return None


@dataclass(frozen=True, slots=True)
class Serialized:
    """A serialized message, with the method of a message that Ray calls."""

    data: bytes

    def SerializeToString(self) -> bytes:  # noqa: N802 - the name is protobuf's
        """Return the bytes."""
        return self.data


class RayCall:
    """A call as Demi's handlers expect it, made of Ray's context and of its stream of requests if it has one.

    Answers of a stream go to `answers`; None is the end.
    """

    def __init__(self, context: Any, requests: AsyncIterator[bytes] | None = None) -> None:
        self._context = context
        self._requests = requests
        self.answers: asyncio.Queue[bytes | None] = asyncio.Queue(_UNREAD)

    def invocation_metadata(self) -> list[tuple[str, str | bytes]]:
        """Return the metadata that the client sent."""
        metadata: list[tuple[str, str | bytes]] = self._context.invocation_metadata()
        return metadata

    def time_remaining(self) -> float | None:
        """Return None: Ray does not pass the deadline on, but cancels the call when it is over."""
        return None

    def set_trailing_metadata(self, metadata: Iterable[tuple[str, str]]) -> None:
        """Set the metadata after the answer."""
        self._context.set_trailing_metadata(list(metadata))

    def set_code(self, code: Any) -> None:
        """Set the status of the call."""
        self._context.set_code(code)

    def set_details(self, details: str) -> None:
        """Set the error message of the call."""
        self._context.set_details(details)

    async def read(self) -> bytes | None:
        """Return the next request of a stream; None after the last one."""
        assert self._requests is not None  # only methods with a stream of requests read
        return await anext(self._requests, None)

    async def write(self, data: bytes) -> None:
        """Write one answer of a stream, once Ray has taken the one before."""
        await self.answers.put(data)


class GrpcMethods:
    """Base class of a replica with a method for each of Demi's; Ray finds them by name. Its handlers are set at the start."""

    grpc_services: dict[str, MethodHandlers]

    async def answer_call(self, service_name: str, method: str, data: bytes, context: Any) -> Serialized:
        """Answer a call with one message; errors become its status."""
        call = RayCall(context)
        behavior: Any = self.grpc_services[service_name][method].unary_unary
        return Serialized(await behavior(data, call) or b"")

    async def answer_stream(
        self, service_name: str, method: str, sent: Any, context: Any
    ) -> AsyncGenerator[Serialized]:
        """Answer a call with several messages; `sent` is the one request, or a stream of them."""
        handler = self.grpc_services[service_name][method]
        call = RayCall(context, aiter(sent) if handler.request_streaming else None)
        behavior = handler.stream_stream if handler.request_streaming else handler.unary_stream
        task = asyncio.create_task(_write_all(behavior, sent, call))
        try:
            while (data := await call.answers.get()) is not None:
                yield Serialized(data)
            await task
        finally:
            task.cancel()


async def _write_all(behavior: Any, sent: Any, call: RayCall) -> None:
    try:
        await behavior(sent, call)
    finally:
        await call.answers.put(None)


def _add_method(service_name: str, method: str, *, streams: bool) -> None:
    async def unary(self: GrpcMethods, request: Any, grpc_context: Any) -> Serialized:
        return await self.answer_call(service_name, method, request, grpc_context)

    async def stream(self: GrpcMethods, request: Any, grpc_context: Any) -> AsyncIterator[Serialized]:
        async with contextlib.aclosing(self.answer_stream(service_name, method, request, grpc_context)) as answers:
            async for each in answers:
                yield each

    made: Any = stream if streams else unary
    made.__name__ = method
    setattr(GrpcMethods, method, made)


for _service in SERVICES:
    for _method in service(_service).methods:
        _add_method(_service, _method.name, streams=_method.server_streaming)
