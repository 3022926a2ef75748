"""OpenTelemetry, and its only home: a trace of every inference, written once its answer has been sent."""

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
"""What the last traces get to be sent when the server stops; a collector that is down must not hold it."""


@dataclass(frozen=True, slots=True)
class Inference:
    """What a trace says of one inference, whichever way it came. Begin and end are nanoseconds since the epoch.

    `model` and `version` are as asked for where there is no such model; `answer` is None where nothing was computed.
    """

    model: str
    version: str
    started_ns: int
    ended_ns: int
    attributes: Mapping[str, str | int]
    """What the way it came adds: the status of HTTP or of gRPC, the id of the request."""
    answer: Answer | None = None
    failed: bool = False
    """Whether it is the server that failed, not the caller."""


class Tracer:
    """Sends traces of inferences. Owns a provider and its thread; any thread may record.

    A trace is written afterwards, from times that the server measures anyway: while a request is on its way, tracing
    costs it nothing.
    """

    def __init__(self, processor: SpanProcessor) -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = _provider(processor)
        self._tracer = self._provider.get_tracer("demi", __version__)
        self._propagator = TraceContextTextMapPropagator()

    def record(self, inference: Inference, traceparent: str = "", tracestate: str = "") -> None:
        """Write the spans `infer`, `queue` and `compute` of one inference, below the caller's own where it sent one."""
        from opentelemetry.trace import SpanKind, StatusCode, set_span_in_context

        parent = self._propagator.extract({"traceparent": traceparent, "tracestate": tracestate})
        attributes = {
            "demi.model": inference.model,
            "demi.version": inference.version,
            "demi.precision": inference.answer.precision if inference.answer else "",
            **inference.attributes,
        }
        span = self._tracer.start_span(
            f"infer {inference.model}", parent, SpanKind.SERVER, attributes, start_time=inference.started_ns
        )
        if inference.answer and span.is_recording():
            self._record_parts(inference.answer, inference.ended_ns, set_span_in_context(span, parent))
        if inference.failed:
            span.set_status(StatusCode.ERROR)
        span.end(inference.ended_ns)

    def _record_parts(self, answer: Answer, ended_ns: int, within: Context) -> None:
        """Waiting and computing: how long is measured, and they are shown as the end of the request."""
        taken_ns = ended_ns - answer.compute_ns
        for name, start, end in (("queue", taken_ns - answer.queue_ns, taken_ns), ("compute", taken_ns, ended_ns)):
            self._tracer.start_span(name, within, start_time=start).end(end)

    def close(self) -> None:
        """Send what is left, for at most LAST_EXPORT_S seconds."""
        ending = threading.Thread(target=self._provider.shutdown, daemon=True)
        ending.start()
        ending.join(LAST_EXPORT_S)


def open_tracer(settings: ServeSettings) -> Tracer | None:
    """The tracer that the settings ask for, sending by OTLP over HTTP; None where they ask for none.

    Raises PackageError where OpenTelemetry is not installed.
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
    """A provider of its own, which no other library in the process sees. Sampling is as OTEL_TRACES_SAMPLER says."""
    from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import TracerProvider

    name = OTELResourceDetector().detect().attributes.get(SERVICE_NAME, "demi")
    resource = Resource.create({SERVICE_NAME: name, SERVICE_VERSION: __version__})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(processor)
    return provider
