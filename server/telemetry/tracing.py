"""OpenTelemetry traces of inferences, recorded once the answer has been sent. The only module that imports OpenTelemetry."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from demi.errors import missing_package
from demi.server.protocol.answer import Answer
from demi.server.settings import ServeSettings
from demi.version import __version__

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import SpanProcessor, TracerProvider

LAST_EXPORT_S = 3.0
"""Time to send the last traces when the server stops; a collector that is down must not delay it further."""


@dataclass(frozen=True, slots=True)
class InferenceRecord:
    """The data of one trace, for HTTP and gRPC alike. Start and end are nanoseconds since the epoch.

    For an unknown model, `model` and `version` are those of the request. `answer` is None if nothing was computed.
    """

    model: str
    version: str
    started_ns: int
    ended_ns: int
    attributes: Mapping[str, str | int]
    """Attributes of the protocol: the HTTP or gRPC status, the request id."""
    answer: Answer | None = None
    failed: bool = False
    """True if the server failed, as opposed to the client."""


class Tracer:
    """Records traces of inferences. Owns a provider and its thread; thread-safe.

    A trace is built afterwards from times that the server measures anyway, so that requests in progress pay nothing.
    """

    def __init__(self, processor: SpanProcessor) -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = _provider(processor)
        self._tracer = self._provider.get_tracer("demi", __version__)
        self._propagator = TraceContextTextMapPropagator()

    def record(self, call: InferenceRecord, traceparent: str = "", tracestate: str = "") -> None:
        """Record the spans `infer`, `queue` and `compute` of one inference, as children of the caller's span if it sent one."""
        from opentelemetry.trace import SpanKind, StatusCode, set_span_in_context

        parent = self._propagator.extract({"traceparent": traceparent, "tracestate": tracestate})
        attributes = {
            "demi.model": call.model,
            "demi.version": call.version,
            "demi.precision": call.answer.precision if call.answer else "",
            **call.attributes,
        }
        span = self._tracer.start_span(
            f"infer {call.model}", parent, SpanKind.SERVER, attributes, start_time=call.started_ns
        )
        if call.answer and span.is_recording():
            self._record_parts(call.answer, call.ended_ns, set_span_in_context(span, parent))
        if call.failed:
            span.set_status(StatusCode.ERROR)
        span.end(call.ended_ns)

    def _record_parts(self, answer: Answer, ended_ns: int, within: Context) -> None:
        """Record queue and compute time. Only durations are measured, so the spans are placed at the end of the request."""
        taken_ns = ended_ns - answer.compute_ns
        for name, start, end in (("queue", taken_ns - answer.queue_ns, taken_ns), ("compute", taken_ns, ended_ns)):
            self._tracer.start_span(name, within, start_time=start).end(end)

    def close(self) -> None:
        """Send the remaining traces, for at most LAST_EXPORT_S seconds."""
        ending = threading.Thread(target=self._provider.shutdown, daemon=True)
        ending.start()
        ending.join(LAST_EXPORT_S)


def open_tracer(settings: ServeSettings) -> Tracer | None:
    """Return a tracer that exports OTLP over HTTP, if the settings turn tracing on, else None.

    Raises PackageError if OpenTelemetry is not installed.
    """
    if not (settings.otel or settings.otel_endpoint):
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise missing_package("opentelemetry-sdk", "otel") from error
    return Tracer(BatchSpanProcessor(OTLPSpanExporter(endpoint=settings.otel_endpoint or None)))


def _provider(processor: SpanProcessor) -> TracerProvider:
    """Return a provider private to the server. OTEL_TRACES_SAMPLER configures sampling."""
    from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import TracerProvider

    name = OTELResourceDetector().detect().attributes.get(SERVICE_NAME, "demi")
    resource = Resource.create({SERVICE_NAME: name, SERVICE_VERSION: __version__})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(processor)
    return provider
