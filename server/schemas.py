"""The JSON bodies of the protocol: the infer request as it arrives, and the answers of every other path."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

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
    """What a model takes and gives. `parameters` says in which precision, and where, it really runs."""

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
class IndexEntry:
    """One model version of the repository; `reason` says why it is not ready."""

    name: str
    version: str
    state: str
    reason: str
