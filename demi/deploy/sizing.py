"""Sizes of a server for given models: memory, time to start, requests in flight. Rules of thumb, to be measured.

`demi bench` measures the memory of a bundle; a load test measures the rest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from demi.deploy.models import DeployedModel
from demi.deploy.options import DeployOptions

MIB = 1 << 20

BASE_MIB = {"cpu": 256, "cuda": 4096}
"""Memory of a server without models, with room for requests; CUDA's libraries and context need most of it on a GPU."""

COPIES = 3
"""Memory of a loaded bundle as a multiple of its files: on a CPU, half weights are kept in FP32 as well, and activations
need room."""

READ_BYTES_PER_S = 50 * MIB
"""Speed at which models are read from a network volume, checked against their digests and tried."""

START_S = 300
"""Time that a server may need to start in any case; importing gigabytes of CUDA is slow."""

WAITING = 1.5
"""Requests in flight per slot of a run at which a replica is full: one run computes, the next one fills."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """Sizes of one replica."""

    memory_mib: int
    """Memory that is reserved; the limit is twice as much."""
    start_s: int
    """Seconds until a server that is not up counts as failed."""
    storage_mib: int
    """Scratch space, with room for downloaded models if they are not on a volume."""
    in_flight: dict[str, int]
    """For each model, the mean number of requests in flight per replica above which another replica starts."""


def size_server(models: Sequence[DeployedModel], options: DeployOptions) -> Sizes:
    """Return the sizes of a server that serves all these models."""
    on_disk = sum(model.file_bytes for model in models)
    return Sizes(
        memory_mib=_rounded(BASE_MIB[options.device] + COPIES * on_disk / MIB),
        start_s=START_S + math.ceil(on_disk / READ_BYTES_PER_S),
        storage_mib=_rounded(256 + (0 if options.claim else 1.2 * on_disk / MIB)),
        in_flight={model.name: max(2, math.ceil(WAITING * model.max_batch * options.instances)) for model in models},
    )


def _rounded(mib: float) -> int:
    """Round up to a multiple of 128 MiB."""
    return 128 * math.ceil(mib / 128)
