"""GPU memory as Prometheus metrics, queried from the driver at each scrape."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from demi.errors import DemiError
from demi.runtime.base import Device
from demi.runtime.cuda.bindings import Cuda
from demi.server.models.model import Model, State

log = logging.getLogger("demi.server")

Memory = Callable[[Device], tuple[int, int]]
"""Returns free and total bytes of a device."""


class GpuCollector(Collector):
    """Used and total memory of each GPU that a ready model runs on; other processes' memory counts as used."""

    def __init__(self, models: Iterable[Model], memory: Memory | None = None) -> None:
        self._models = models
        self._memory = memory or (lambda device: Cuda(device).memory())

    def collect(self) -> Iterator[Metric]:
        """Return both gauges under Triton's names; nothing if all models run on the CPU."""
        used = Metric("nv_gpu_memory_used_bytes", "GPU memory in use by all processes", "gauge")
        total = Metric("nv_gpu_memory_total_bytes", "GPU memory", "gauge")
        for device in sorted(self._gpus(), key=str):
            try:
                free_bytes, total_bytes = self._memory(device)
            except DemiError as error:
                log.debug("cannot query the memory of %s: %s", device, error)
                continue
            used.add_sample(used.name, {"gpu": str(device)}, total_bytes - free_bytes)
            total.add_sample(total.name, {"gpu": str(device)}, total_bytes)
        if total.samples:
            yield from (used, total)

    def _gpus(self) -> set[Device]:
        ready = (model for model in self._models if model.state is State.READY)
        devices = {session.device for model in ready for session in model.loaded.sessions}
        return {device for device in devices if device.kind == "cuda"}
