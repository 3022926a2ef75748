"""Traces of gRPC calls: status, parent trace, and times."""

from __future__ import annotations

import asyncio
import contextlib

import grpc
import numpy as np
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from demi.server.grpc.inference import (
    ModelInferRequest,
    ModelInferResponse,
    ModelStreamInferResponse,
)
from demi.server.grpc.server import GrpcServer
from demi.server.telemetry.tracing import Tracer
from tests.server.grpc.test_server import with_server
from tests.server.grpc_client import INFERENCE

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def request(model: str = "double", values: object = (1, 2, 3)) -> ModelInferRequest:
    """Return a request with one row."""
    data = np.array(values, np.float32)
    asked = ModelInferRequest(model_name=model, id="mine")
    asked.inputs.add(name="x", datatype="FP32", shape=[1, 3])
    asked.raw_input_contents.append(data.tobytes())
    return asked


async def ask_once_each(server: GrpcServer) -> None:
    """Send a valid request, an invalid one, one for an unknown model, and one in a stream."""
    metadata = (("traceparent", f"00-{TRACE}-{PARENT}-01"),)
    async with grpc.aio.insecure_channel(server.address) as channel:
        infer = channel.unary_unary(
            f"/{INFERENCE}/ModelInfer", ModelInferRequest.SerializeToString, ModelInferResponse.FromString
        )
        await infer(request(), metadata=metadata)
        for wrong in (request(values=(1, 2)), request("nope")):
            with contextlib.suppress(grpc.aio.AioRpcError):
                await infer(wrong)
        stream = channel.stream_stream(
            f"/{INFERENCE}/ModelStreamInfer", ModelInferRequest.SerializeToString, ModelStreamInferResponse.FromString
        )
        call = stream(iter([request()]))
        async for _ in call:
            pass
        await asyncio.sleep(0.05)


def test_calls_are_traced():
    """Each inference is a span with method and code, below the caller's trace."""
    exporter = InMemorySpanExporter()
    with_server(ask_once_each, tracer=Tracer(SimpleSpanProcessor(exporter)))
    found = [span for span in exporter.get_finished_spans() if span.name.startswith("infer")]
    good, wrong, unknown, streamed = found

    assert [0, 3, 5, 0] == [span.attributes["rpc.grpc.status_code"] for span in found]
    assert ["ModelInfer"] * 3 + ["ModelStreamInfer"] == [span.attributes["rpc.method"] for span in found]
    assert {INFERENCE} == {span.attributes["rpc.service"] for span in found}
    assert int(TRACE, 16) == good.context.trace_id
    assert ("double", "fp16", "mine") == tuple(
        good.attributes[f"demi.{name}"] for name in ("model", "precision", "request_id")
    )
    assert {"queue", "compute"} == {
        span.name
        for span in exporter.get_finished_spans()
        if span.parent and span.parent.span_id == streamed.context.span_id
    }
    assert "nope" == unknown.attributes["demi.model"]
    assert StatusCode.UNSET == wrong.status.status_code
