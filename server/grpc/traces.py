"""Traces of inferences over gRPC."""

from __future__ import annotations

import time

import grpc

from demi.server.grpc.calls import Call
from demi.server.grpc.inference import ModelInferRequest
from demi.server.protocol.answer import Answer
from demi.server.telemetry.tracing import InferenceRecord, Tracer

_FAILED = frozenset({"INTERNAL", "UNAVAILABLE", "DEADLINE_EXCEEDED"})
"""Codes for failures of the server, as 5xx in HTTP."""


def trace(
    tracer: Tracer,
    message: ModelInferRequest,
    call: Call,
    method: str,
    started_ns: int,
    answer: Answer | None,
    code: str,
) -> None:
    """Record an inference that has just ended with a status code, as a child of the caller's trace if its metadata has one."""
    metadata = {key: value for key, value in call.invocation_metadata() or () if isinstance(value, str)}
    attributes: dict[str, str | int] = {
        "rpc.system": "grpc",
        "rpc.service": "inference.GRPCInferenceService",
        "rpc.method": method,
        "rpc.grpc.status_code": grpc.StatusCode[code].value[0],
        "demi.request_id": message.id,
    }
    record = InferenceRecord(
        model=message.model_name,
        version=message.model_version,
        started_ns=started_ns,
        ended_ns=time.time_ns(),
        attributes=attributes,
        answer=answer,
        failed=code in _FAILED,
    )
    tracer.record(record, metadata.get("traceparent", ""), metadata.get("tracestate", ""))
