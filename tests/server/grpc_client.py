"""Helpers of the gRPC tests: inputs for tritonclient, plain calls, and error codes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from tritonclient.utils import InferenceServerException

from demi.server.grpc.messages import service
from tests.server.bundles import slow_turns

INFERENCE = "inference.GRPCInferenceService"
HEALTH = "grpc.health.v1.Health"
X = np.array([[1, 2, 3]], np.float32)


def given(name: str, values: np.ndarray, datatype: str) -> triton.InferInput:
    """Return an input with its data."""
    tensor = triton.InferInput(name, list(values.shape), datatype)
    tensor.set_data_from_numpy(values)
    return tensor


def slow_inputs(seconds: float) -> list[triton.InferInput]:
    """Return inputs that keep the model `slow` busy for about that many seconds."""
    turns = np.array(slow_turns(seconds) if seconds else 0)
    return [given("turns", turns, "INT64"), given("x", np.ones((256, 256), np.float32), "FP32")]


def method(channel: grpc.Channel, name: str, of: str = INFERENCE) -> Callable[..., Any]:
    """Return a method of a service, which answers once or, like `Watch`, with a stream."""
    described = service(of).methods_by_name[name]
    make = channel.unary_stream if described.server_streaming else channel.unary_unary
    return make(
        f"/{of}/{name}",
        GetMessageClass(described.input_type).SerializeToString,
        GetMessageClass(described.output_type).FromString,
    )


def refused(channel: grpc.Channel, request: Message, name: str = "ModelInfer") -> tuple[str, str]:
    """Return code and message of the error for a request."""
    with pytest.raises(grpc.RpcError) as caught:
        method(channel, name)(request, timeout=20)
    return caught.value.code().name, caught.value.details()


def failure(work: Callable[[], object]) -> tuple[str, str]:
    """Return code and message of the error that tritonclient raises."""
    with pytest.raises(InferenceServerException) as caught:
        work()
    return str(caught.value.status()).removeprefix("StatusCode."), caught.value.message()
