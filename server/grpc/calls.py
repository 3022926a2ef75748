"""From a service's descriptor and the object that answers it to handlers, with every error told by its code."""

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

from demi.server.errors import RequestError, error_text, status_of
from demi.server.grpc.message_size import check_weight
from demi.server.grpc.messages import service
from demi.server.memory_limit import NO_LIMIT, SMALLEST, InFlight, Lease
from demi.server.threads import OFF_LOOP_BYTES, in_thread

M = TypeVar("M", bound=Message)

Call = grpc.aio.ServicerContext[Any, Any]
Authorize = Callable[[Sequence[tuple[str, str]]], None]
"""Looks at a call's metadata, in pairs of a name and a value, and raises a DemiError where it is not welcome."""

_OPEN = ("ServerLive", "ServerReady")
"""What probes ask, which have no key."""
_LONGEST_TEXT = 2000
"""Errors travel in trailers, for which clients have 8 KB of room."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """What messages may take: bytes once parsed, of one, and bytes on the wire, of all that are under way."""

    max_parsed_bytes: int = 2**63
    in_flight: InFlight = NO_LIMIT

    async def parse(self, kind: type[M], data: bytes, lease: Lease) -> M:
        """The message of that kind in these bytes, for which the lease takes room.

        Raises RequestError where there is none, BodyTooLargeError for one that would be too large in memory, and
        OverloadedError where too much is under way. Large ones are parsed in another thread, which gRPC's own
        deserializers could not.
        """
        if len(data) <= OFF_LOOP_BYTES:
            return self._parse(kind, data)
        if len(data) > SMALLEST:
            lease.add(len(data))
        return await in_thread(lambda: self._parse(kind, data))

    def _parse(self, kind: type[M], data: bytes) -> M:
        check_weight(data, kind, self.max_parsed_bytes)
        try:
            return kind.FromString(data)
        except DecodeError as error:
            raise RequestError(f"this is no {kind.DESCRIPTOR.full_name}: {error}") from error


def handlers(
    name: str, methods: object, authorize: Authorize | None = None, bounds: Bounds | None = None
) -> grpc.GenericRpcHandler:
    """A handler for every method of the service called `name`: `methods` answers `ModelInfer` in `model_infer`.

    A method takes the message and the call, and returns its answer or writes several to the call. One that is asked with
    a stream takes the call alone, and reads and writes bytes.
    """
    known = {method.name: _handler(method, methods, authorize, bounds or Bounds()) for method in service(name).methods}
    return grpc.method_handlers_generic_handler(name, known)


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


def _handler(
    method: MethodDescriptor, methods: object, authorize: Authorize | None, bounds: Bounds
) -> grpc.RpcMethodHandler[Any, Any]:
    work = getattr(methods, snake_case(method.name))
    kind = GetMessageClass(method.input_type)
    admit = None if method.name in _OPEN else authorize

    async def ask(data: bytes, call: Call) -> bytes | None:
        _authorize(call, admit)
        with bounds.in_flight.lease() as lease:
            result = await work(await bounds.parse(kind, data, lease), call)
            return None if result is None else result.SerializeToString()

    async def answer(data: bytes, call: Call) -> bytes | None:
        return await _telling(ask(data, call), call)

    async def converse(call: Call) -> None:
        _authorize(call, admit)
        await work(call)

    async def stream(_: object, call: Call) -> None:
        await _telling(converse(call), call)

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


def _authorize(call: Call, authorize: Authorize | None) -> None:
    """Raise what `authorize` raises for a call that is not welcome."""
    if authorize:
        authorize(text_metadata(call))


async def _telling(answering: Awaitable[bytes | None], call: Call) -> bytes | None:
    """What a call is answered; one that is not welcome, or that fails, ends with its code and text.

    `call.abort` would keep its exception in the call, and with it the message in the frames that it came through: a
    cycle that stays until the collector looks at the oldest generation, which may be never.
    """
    try:
        return await answering
    except CallerLeftError as error:
        raise asyncio.CancelledError from error  # which gRPC takes for what it is, and logs no error of its own
    except Exception as error:  # every failure has a code
        call.set_code(getattr(grpc.StatusCode, status_of(error).grpc))
        call.set_details(error_text(error)[:_LONGEST_TEXT])
        return b""  # not sent beside a code
