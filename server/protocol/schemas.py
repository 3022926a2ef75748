"""JSON bodies of the protocol: infer requests as sent, and the requests and answers of all other paths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec

Parameter = str | int | float | bool


class InferInput(msgspec.Struct, gc=False):
    """An input of an infer request. `protocol/request.py` checks all members but the name, so that errors name the tensor."""

    name: str
    shape: Any = None
    datatype: Any = None
    data: Any = msgspec.UNSET
    parameters: Any = None


class FloatInput(InferInput, gc=False, kw_only=True):
    """An input whose data is a flat list of numbers for a float datatype, as the parser itself has checked."""

    datatype: Literal["FP16", "FP32", "FP64", "BF16"]
    data: list[float]


class InferOutput(msgspec.Struct, gc=False):
    """A requested output of an infer request."""

    name: str
    parameters: Any = None


class InferMessage(msgspec.Struct, gc=False):
    """The JSON part of an infer request; unknown members are ignored."""

    inputs: Sequence[InferInput]
    outputs: list[InferOutput] | None = None
    id: str | None = None
    parameters: Any = None


class FloatMessage(InferMessage, gc=False):
    """An infer request whose inputs all are flat lists of floats, the most common kind by far."""

    inputs: list[FloatInput]


class IndexRequest(msgspec.Struct, gc=False):
    """The body of a repository index request; it may be empty."""

    ready: bool = False


class ControlRequest(msgspec.Struct, gc=False):
    """The body of a request to load or unload a model; it may be empty."""

    parameters: dict[str, Any] | None = None


class VersionRequest(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    """The body of a request to promote or roll back; it may be empty."""

    version: str | int | None = None


class CanaryRequest(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    """The body of a request to send a share of a model's traffic to one version."""

    percent: Annotated[float, msgspec.Meta(ge=0, le=100)]
    version: str | int | None = None
    header: str = ""
    """`NAME` or `NAME=VALUE`: requests with this header go to the canary as well."""


class ShadowRequest(msgspec.Struct, gc=False):
    """The body of a request to set the share of a model's requests that are sampled."""

    shadow: Annotated[float, msgspec.Meta(ge=0, le=1)]


class RegionRequest(msgspec.Struct, gc=False):
    """The body of a request to register shared memory: `byte_size` bytes from `offset` of the POSIX object `key`."""

    key: str
    byte_size: int
    offset: int = 0


@dataclass(frozen=True, slots=True)
class ErrorBody:
    """The body of every answer with a status other than 200."""

    error: str


@dataclass(frozen=True, slots=True)
class ServerLive:
    """The process is alive."""

    live: bool


@dataclass(frozen=True, slots=True)
class ServerReady:
    """All models are ready."""

    ready: bool


@dataclass(frozen=True, slots=True)
class ServerMetadata:
    """Name and version of the server, and the protocol extensions it supports."""

    name: str
    version: str
    extensions: list[str]


@dataclass(frozen=True, slots=True)
class TensorMetadata:
    """An input or output; -1 is a dynamic axis."""

    name: str
    datatype: str
    shape: list[int]


@dataclass(frozen=True, slots=True)
class ModelMetadata:
    """Inputs and outputs of a model; `parameters` contains the precision, device and batching it actually uses."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]
    parameters: dict[str, str]


@dataclass(frozen=True, slots=True)
class ModelReady:
    """One model version is ready."""

    name: str
    ready: bool


@dataclass(frozen=True, slots=True)
class TensorConfig:
    """An input or output in the model configuration; `dims` excludes the batch axis."""

    name: str
    data_type: str
    dims: list[int]


@dataclass(frozen=True, slots=True)
class TransactionPolicy:
    """Number of answers to a request: `decoupled` allows more than one, as in a stream of generated text."""

    decoupled: bool = False


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The model configuration that perf_analyzer and tritonclient read."""

    name: str
    platform: str
    backend: str
    max_batch_size: int
    input: list[TensorConfig]
    output: list[TensorConfig]
    model_transaction_policy: TransactionPolicy


@dataclass(frozen=True, slots=True)
class DurationStats:
    """A count of events, and their total duration in nanoseconds."""

    count: int
    ns: int


@dataclass(frozen=True, slots=True)
class InferenceStats:
    """Total time of all requests by stage; this server has no response cache, so its counts are zero."""

    success: DurationStats
    fail: DurationStats
    queue: DurationStats
    compute_input: DurationStats
    compute_infer: DurationStats
    compute_output: DurationStats
    cache_hit: DurationStats
    cache_miss: DurationStats


@dataclass(frozen=True, slots=True)
class BatchStats:
    """Durations of the runs with one batch size."""

    batch_size: int
    compute_input: DurationStats
    compute_infer: DurationStats
    compute_output: DurationStats


@dataclass(frozen=True, slots=True)
class ModelStats:
    """Statistics of one model version: rows inferred, runs, time of the last run (ms since 1970), and durations."""

    name: str
    version: str
    last_inference: int
    inference_count: int
    execution_count: int
    inference_stats: InferenceStats
    batch_stats: list[BatchStats]


@dataclass(frozen=True, slots=True)
class StatsAnswer:
    """The statistics of one or more model versions."""

    model_stats: list[ModelStats]


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """A model version in the repository index; `reason` explains why it is not ready."""

    name: str
    version: str
    state: str
    reason: str


@dataclass(frozen=True, slots=True)
class VersionAccuracy:
    """Live accuracy of a version in short: state against the budget, samples, and each output's measures."""

    state: str
    samples: int
    outputs: list[dict[str, Any]]
    guard_reruns: int


@dataclass(frozen=True, slots=True)
class VersionEntry:
    """One version of a model: its state, its share of the traffic, and its requests since the rules last changed."""

    version: str
    state: str
    reason: str
    aliases: list[str]
    percent: float
    """Share of the requests without a version that it answers now."""
    precision: str
    requests: int
    failed: int
    mean_ms: float | None
    p50_ms: float | None
    """Estimated from a histogram, as is `p99_ms`."""
    p99_ms: float | None
    accuracy: VersionAccuracy | None
    """None before the version is loaded."""


@dataclass(frozen=True, slots=True)
class CanaryEntry:
    """The version that answers a share of the requests, and the header that sends a request to it; empty if none does."""

    version: str
    percent: float
    header: str


@dataclass(frozen=True, slots=True)
class VersionsAnswer:
    """The versions of a model side by side, and the rules that choose among them."""

    name: str
    answering: str | None
    """The version that answers requests without one, apart from the canary's; None if there is none."""
    stable: str | None
    """None if the newest version answers, whichever that is."""
    canary: CanaryEntry | None
    aliases: dict[str, str]
    previous: list[str]
    """Earlier stable versions, the latest first: where a rollback goes."""
    since_ms: int | None
    """Time of the last change of the rules, ms since 1970: counts and times start there; None: when the server started."""
    versions: list[VersionEntry]
    saved: bool | None = None
    """In the answer to a change, whether `versions.json` holds it; otherwise null."""


@dataclass(frozen=True, slots=True)
class WorstRequest:
    """One of the sampled requests with the largest relative L2 error; `relative_l2` is null if infinite."""

    id: str
    fingerprint: str
    when_ms: int
    relative_l2: float | None


@dataclass(frozen=True, slots=True)
class ShadowCounts:
    """Share of requests sampled, number compared, and number dropped by reason."""

    share: float
    samples: int
    dropped: dict[str, int]


@dataclass(frozen=True, slots=True)
class GuardCounts:
    """Requests rerun in FP32, requests that FP32 could not repair, and the most recent of both."""

    reruns: int
    unrepaired: int
    requests: list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class RangeCounts:
    """Calibrated range of an input, and the number of requests beyond 1.5 times that range."""

    input: str
    low: float
    high: float
    outside: int


@dataclass(frozen=True, slots=True)
class AccuracyAnswer:
    """Accuracy of half precision in production: the latest comparisons with FP32 against the bundle's budget."""

    name: str
    version: str
    precision: str
    state: str
    """`within`, `over`, or `unknown (n samples)`."""
    degraded: bool
    serving: str
    """The precision used for requests that do not choose one."""
    on_drift: str
    samples: int
    outputs: list[dict[str, Any]]
    worst: list[WorstRequest]
    shadow: ShadowCounts | None
    guard: GuardCounts
    ranges: list[RangeCounts]
    changes: list[dict[str, Any]]
    not_compared: list[str]
    """Outputs excluded since they differ from run to run even in FP32."""
    vouches_for: str = ""
    """Conclusion of these comparisons about half precision, with what they cannot show."""


@dataclass(frozen=True, slots=True)
class RegionStatus:
    """A registered region of shared memory: `byte_size` bytes from `offset` of the POSIX object `key`."""

    name: str
    key: str
    offset: int
    byte_size: int
