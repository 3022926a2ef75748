"""From a service's descriptor and the object that answers it to handlers, with every error told by its code."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import grpc
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from server.errors import error_text, status_of
from server.grpc.messages import service

Call = grpc.aio.ServicerContext[Any, Any]
Authorize = Callable[[Mapping[str, str]], None]
"""Looks at a call's metadata, and raises a DemiError where it is not welcome."""

_LONGEST_TEXT = 2000
"""Errors travel in trailers, for which clients have 8 KB of room."""


def handlers(name: str, methods: object, authorize: Authorize | None = None) -> grpc.GenericRpcHandler:
    """A handler for every method of the service called `name`: `methods` answers `ModelInfer` in `model_infer`.

    A method that answers once takes the message and the call; one that answers with a stream takes the call, and the
    message before it unless it is asked with a stream.
    """
    known = {method.name: _handler(method, methods, authorize) for method in service(name).methods}
    return grpc.method_handlers_generic_handler(name, known)


def _handler(method: MethodDescriptor, methods: object, authorize: Authorize | None) -> grpc.RpcMethodHandler[Any, Any]:
    work = getattr(methods, snake_case(method.name))

    async def answer(message: Message, call: Call) -> Any:
        try:
            _admit(call, authorize)
            return await work(message, call)
        except Exception as error:  # every failure has a code
            await _tell(call, error)

    async def stream(_: object, call: Call) -> None:
        try:
            _admit(call, authorize)
            await work(call)
        except Exception as error:
            await _tell(call, error)

    kinds = {
        (False, False): (grpc.unary_unary_rpc_method_handler, answer),
        (False, True): (grpc.unary_stream_rpc_method_handler, answer),
        (True, True): (grpc.stream_stream_rpc_method_handler, stream),
    }
    make, behavior = kinds[method.client_streaming, method.server_streaming]
    return make(
        behavior,
        request_deserializer=GetMessageClass(method.input_type).FromString,
        response_serializer=GetMessageClass(method.output_type).SerializeToString,
    )


def snake_case(name: str) -> str:
    """`ModelInfer` as `model_infer`."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


def _admit(call: Call, authorize: Authorize | None) -> None:
    if authorize:
        authorize({key: value for key, value in call.invocation_metadata() or () if isinstance(value, str)})


async def _tell(call: Call, error: Exception) -> None:
    await call.abort(getattr(grpc.StatusCode, status_of(error).grpc), error_text(error)[:_LONGEST_TEXT])
