"""The JSON bodies of the protocol: the infer request as it arrives, and the answers of every other path."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import msgspec

Parameter = str | int | float | bool


class InferInput(msgspec.Struct, gc=False):
    """One input of an infer request. Members past the name are checked by `wire`, which can name the tensor."""

    name: str
    shape: Any = None
    datatype: Any = None
    data: Any = msgspec.UNSET
    parameters: Any = None


class InferOutput(msgspec.Struct, gc=False):
    """One wanted output of an infer request."""

    name: str
    parameters: Any = None


class InferMessage(msgspec.Struct, gc=False):
    """The JSON part of an infer request; members the protocol does not know are passed over."""

    inputs: list[InferInput]
    outputs: list[InferOutput] | None = None
    id: str | None = None
    parameters: Any = None


class IndexRequest(msgspec.Struct, gc=False):
    """The body of a repository index request, which may also be empty."""

    ready: bool = False


class ControlRequest(msgspec.Struct, gc=False):
    """The body of a request to load or unload a model, which may also be empty."""

    parameters: dict[str, Any] | None = None


class ShadowRequest(msgspec.Struct, gc=False):
    """The body of a request to sample a share of a model's requests."""

    shadow: Annotated[float, msgspec.Meta(ge=0, le=1)]


class RegionRequest(msgspec.Struct, gc=False):
    """The body of a request to register shared memory: `byte_size` bytes from `offset` of the POSIX object `key`."""

    key: str
    byte_size: int
    offset: int = 0


@dataclass(frozen=True, slots=True)
class ErrorBody:
    """The body of every answer that is not 200."""

    error: str


@dataclass(frozen=True, slots=True)
class ServerLive:
    """The process answers."""

    live: bool


@dataclass(frozen=True, slots=True)
class ServerReady:
    """Models can be asked."""

    ready: bool


@dataclass(frozen=True, slots=True)
class ServerMetadata:
    """What this server is and which extensions of the protocol it speaks."""

    name: str
    version: str
    extensions: list[str]


@dataclass(frozen=True, slots=True)
class TensorMetadata:
    """One input or output; -1 is a free axis."""

    name: str
    datatype: str
    shape: list[int]


@dataclass(frozen=True, slots=True)
class ModelMetadata:
    """What a model takes and gives. `parameters` says in which precision, where and in what batches it really runs."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]
    parameters: dict[str, str]


@dataclass(frozen=True, slots=True)
class ModelReady:
    """One model version can be asked."""

    name: str
    ready: bool


@dataclass(frozen=True, slots=True)
class TensorConfig:
    """One input or output in the model configuration; `dims` leaves out the batch axis."""

    name: str
    data_type: str
    dims: list[int]


@dataclass(frozen=True, slots=True)
class TransactionPolicy:
    """Whether a request may have more or fewer than one answer: never, here."""

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
    """How often, and for how many nanoseconds in all."""

    count: int
    ns: int


@dataclass(frozen=True, slots=True)
class InferenceStats:
    """Where the time of all requests went; there is no cache here."""

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
    """How long the runs of one number of rows took."""

    batch_size: int
    compute_input: DurationStats
    compute_infer: DurationStats
    compute_output: DurationStats


@dataclass(frozen=True, slots=True)
class ModelStats:
    """What one model version has done: rows inferred, runs made, milliseconds since 1970 of the last, and times."""

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
    """One model version of the repository; `reason` says why it is not ready."""

    name: str
    version: str
    state: str
    reason: str


@dataclass(frozen=True, slots=True)
class WorstRequest:
    """One of the compared requests with the largest relative L2 error; null where that is infinite."""

    id: str
    fingerprint: str
    when_ms: int
    relative_l2: float | None


@dataclass(frozen=True, slots=True)
class ShadowCounts:
    """The share of requests that is sampled, how many were compared, and how many were not, by the reason."""

    share: float
    samples: int
    dropped: dict[str, int]


@dataclass(frozen=True, slots=True)
class GuardCounts:
    """Answers that FP32 gave in place of half, those that it could not, and the last of their requests."""

    reruns: int
    unrepaired: int
    requests: list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class RangeCounts:
    """What calibration saw of an input, and how many requests were beyond 1.5 times of it."""

    input: str
    low: float
    high: float
    outside: int


@dataclass(frozen=True, slots=True)
class AccuracyAnswer:
    """What half precision costs while a model serves: the last comparisons with FP32, against the bundle's budget."""

    name: str
    version: str
    precision: str
    state: str
    """`within`, `over`, or `unknown (n samples)`."""
    degraded: bool
    serving: str
    """The precision that answers requests which do not ask for one."""
    on_drift: str
    samples: int
    outputs: list[dict[str, Any]]
    worst: list[WorstRequest]
    shadow: ShadowCounts | None
    guard: GuardCounts
    ranges: list[RangeCounts]
    changes: list[dict[str, Any]]
    not_compared: list[str]
    """Outputs that differ from run to run in FP32 itself."""


@dataclass(frozen=True, slots=True)
class RegionStatus:
    """A registered region of shared memory: `byte_size` bytes from `offset` of the POSIX object `key`."""

    name: str
    key: str
    offset: int
    byte_size: int
