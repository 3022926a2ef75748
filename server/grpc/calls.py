"""From a service's descriptor and the object that answers it to handlers, with every error told by its code."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, TypeVar

import grpc
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from server.errors import RequestError, error_text, status_of
from server.grpc.messages import service
from server.threads import OFF_LOOP_BYTES, in_thread

M = TypeVar("M", bound=Message)

Call = grpc.aio.ServicerContext[Any, Any]
Authorize = Callable[[Sequence[tuple[str, str]]], None]
"""Looks at a call's metadata, in pairs of a name and a value, and raises a DemiError where it is not welcome."""

_OPEN = ("ServerLive", "ServerReady")
"""What probes ask, which have no key."""
_LONGEST_TEXT = 2000
"""Errors travel in trailers, for which clients have 8 KB of room."""


def handlers(name: str, methods: object, authorize: Authorize | None = None) -> grpc.GenericRpcHandler:
    """A handler for every method of the service called `name`: `methods` answers `ModelInfer` in `model_infer`.

    A method takes the message and the call, and returns its answer or writes several to the call. One that is asked with
    a stream takes the call alone, and reads and writes bytes.
    """
    known = {method.name: _handler(method, methods, authorize) for method in service(name).methods}
    return grpc.method_handlers_generic_handler(name, known)


async def parse(kind: type[M], data: bytes) -> M:
    """The message of that kind in these bytes; RequestError where there is none.

    Large ones are parsed in another thread, which gRPC's own deserializers could not.
    """
    try:
        return await in_thread(lambda: kind.FromString(data)) if len(data) > OFF_LOOP_BYTES else kind.FromString(data)
    except DecodeError as error:
        raise RequestError(f"this is no {kind.DESCRIPTOR.full_name}: {error}") from error


class CallerLeftError(Exception):
    """An answer that nobody takes any more: its call was cancelled, or its connection is gone."""


async def write(call: Call, data: bytes) -> None:
    """Write one of several answers to a call; CallerLeftError where nobody takes it any more."""
    try:
        await call.write(data)
    except Exception as error:  # gRPC's own class for it is private, and bytes fail for no other reason
        raise CallerLeftError from error


def text_metadata(call: Call) -> list[tuple[str, str]]:
    """What a call sends beside its message, but for bytes."""
    return [(name, value) for name, value in call.invocation_metadata() or () if isinstance(value, str)]


def _handler(method: MethodDescriptor, methods: object, authorize: Authorize | None) -> grpc.RpcMethodHandler[Any, Any]:
    work = getattr(methods, snake_case(method.name))
    kind = GetMessageClass(method.input_type)
    admit = None if method.name in _OPEN else authorize

    async def answer(data: bytes, call: Call) -> bytes | None:
        async with _telling(call, admit):
            result = await work(await parse(kind, data), call)
            return None if result is None else result.SerializeToString()

    async def stream(_: object, call: Call) -> None:
        async with _telling(call, admit):
            await work(call)

    kinds = {
        (False, False): (grpc.unary_unary_rpc_method_handler, answer),
        (False, True): (grpc.unary_stream_rpc_method_handler, answer),
        (True, True): (grpc.stream_stream_rpc_method_handler, stream),
    }
    make, behavior = kinds[method.client_streaming, method.server_streaming]
    return make(behavior)


def snake_case(name: str) -> str:
    """`ModelInfer` as `model_infer`."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


@contextlib.asynccontextmanager
async def _telling(call: Call, authorize: Authorize | None) -> AsyncIterator[None]:
    """Ends a call that is not welcome, or that fails, with its code and text."""
    try:
        if authorize:
            authorize(text_metadata(call))
        yield
    except CallerLeftError as error:
        raise asyncio.CancelledError from error  # which gRPC takes for what it is, and logs no error of its own
    except Exception as error:  # every failure has a code
        code = getattr(grpc.StatusCode, status_of(error).grpc)
        await call.abort(code, error_text(error)[:_LONGEST_TEXT])
