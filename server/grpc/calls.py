"""Make gRPC handlers for a service; errors become status codes."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from demi.server.errors import BodyTooLargeError, RequestError, error_text, status_of
from demi.server.grpc.message_size import check_weight
from demi.server.grpc.messages import service
from demi.server.memory_limit import NO_LIMIT, UNCOUNTED_BYTES, MemoryLimit, Reservation
from demi.server.threads import OFF_LOOP_BYTES, in_thread

M = TypeVar("M", bound=Message)

Call = grpc.aio.ServicerContext[Any, Any]
Authorize = Callable[[Sequence[tuple[str, str]]], None]
"""Checks a call's metadata, pairs of name and value; raises a DemiError to refuse the call."""

MethodHandlers = dict[str, "grpc.RpcMethodHandler[Any, Any]"]
"""The handlers of a service by the names of its methods; they take and return serialized messages."""

_OPEN = ("ServerLive", "ServerReady")
"""Methods of health probes, which need no key."""
_OWN_PARSER = ("ModelInfer",)
"""Methods that take and return serialized messages, and reserve the memory for them."""
_MAX_MESSAGE = 2000
"""Characters. Error messages are sent in trailers, which clients limit to 8 KB."""


@dataclass(frozen=True, slots=True)
class MessageLimits:
    """Limits on messages: memory of a parsed message, bytes of all messages in flight, and bytes of one.

    gRPC itself refuses larger messages where Demi listens; the last limit is for servers that it does not listen on.
    """

    max_parsed_bytes: int = 2**63
    memory_limit: MemoryLimit = NO_LIMIT
    max_bytes: int = 2**63

    async def parse(self, kind: type[M], data: bytes, reservation: Reservation) -> M:
        """Parse a message and reserve memory for it. Large messages are parsed in another thread.

        Raises RequestError for bytes that are not such a message, BodyTooLargeError if it is too long or would take too
        much memory, and OverloadedError if the requests in flight hold too much.
        """
        if len(data) > self.max_bytes:
            raise BodyTooLargeError(f"the message has {len(data)} bytes; this server takes {self.max_bytes}")
        if len(data) <= OFF_LOOP_BYTES:
            return self._parse(kind, data)
        if len(data) > UNCOUNTED_BYTES:
            reservation.add(len(data))
        return await in_thread(lambda: self._parse(kind, data))

    def _parse(self, kind: type[M], data: bytes) -> M:
        check_weight(data, kind, self.max_parsed_bytes)
        try:
            return kind.FromString(data)
        except DecodeError as error:
            raise RequestError(f"the message is not a valid {kind.DESCRIPTOR.full_name}: {error}") from error


def method_handlers(
    name: str, methods: object, authorize: Authorize | None = None, limits: MessageLimits | None = None
) -> MethodHandlers:
    """Return a handler for each method of the service `name`; `methods.model_infer` handles `ModelInfer`, and so on.

    A method takes the message and the call, and returns its answer or writes several to the call. A method with a request
    stream takes only the call, and reads and writes bytes.
    """
    return {
        method.name: _handler(method, methods, authorize, limits or MessageLimits()) for method in service(name).methods
    }


def generic_handler(name: str, methods: MethodHandlers) -> grpc.GenericRpcHandler:
    """Return the handlers of the service `name` in the form in which a gRPC server takes them."""
    return grpc.method_handlers_generic_handler(name, methods)


class CallerLeftError(Exception):
    """The client has cancelled its call or disconnected before its answer."""


async def write(call: Call, data: bytes) -> None:
    """Write one of several answers to a call; CallerLeftError if the client has left."""
    try:
        await call.write(data)
    except Exception as error:  # gRPC's own exception class is private, and writing bytes fails for no other reason
        raise CallerLeftError from error


def text_metadata(call: Call) -> list[tuple[str, str]]:
    """Return the text metadata of a call, without binary values."""
    return [(name, value) for name, value in call.invocation_metadata() or () if isinstance(value, str)]


def _handler(
    method: MethodDescriptor, methods: object, authorize: Authorize | None, limits: MessageLimits
) -> grpc.RpcMethodHandler[Any, Any]:
    work = getattr(methods, snake_case(method.name))
    kind = GetMessageClass(method.input_type)
    admit = None if method.name in _OPEN else authorize

    async def ask(data: bytes, call: Call) -> bytes | None:
        _authorize(call, admit)
        with limits.memory_limit.reserve() as reservation:
            if method.name in _OWN_PARSER:
                own: bytes = await work(data, call, reservation)
                return own
            result = await work(await limits.parse(kind, data, reservation), call)
            return None if result is None else result.SerializeToString()

    async def answer(data: bytes, call: Call) -> bytes | None:
        return await _with_status(ask(data, call), call)

    async def converse(call: Call) -> None:
        _authorize(call, admit)
        await work(call)

    async def stream(_: object, call: Call) -> None:
        await _with_status(converse(call), call)

    kinds = {
        (False, False): (grpc.unary_unary_rpc_method_handler, answer),
        (False, True): (grpc.unary_stream_rpc_method_handler, answer),
        (True, True): (grpc.stream_stream_rpc_method_handler, stream),
    }
    make, behavior = kinds[method.client_streaming, method.server_streaming]
    return make(behavior)


def snake_case(name: str) -> str:
    """Convert `ModelInfer` to `model_infer`."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


def _authorize(call: Call, authorize: Authorize | None) -> None:
    """Raise what `authorize` raises for a call that it refuses."""
    if authorize:
        authorize(text_metadata(call))


async def _with_status(answering: Awaitable[bytes | None], call: Call) -> bytes | None:
    """Await the answer to a call; on an error set status code and message instead.

    `call.abort` would store its exception in the call, and with it all frames and the message: a reference cycle that stays
    until a full garbage collection, which may never happen.
    """
    try:
        return await answering
    except CallerLeftError as error:
        raise asyncio.CancelledError from error  # gRPC handles this one without logging an error
    except Exception as error:  # every failure gets a code
        call.set_code(getattr(grpc.StatusCode, status_of(error).grpc))
        call.set_details(error_text(error)[:_MAX_MESSAGE])
        return b""  # not sent with an error code
