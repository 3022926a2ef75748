"""Metrics of GPU memory."""

from __future__ import annotations

import pytest

from demi.errors import PackageError
from demi.runtime.base import CPU, Device
from demi.server.models.model import Model
from demi.server.telemetry.gpu_metrics import GpuCollector
from tests.server.fakes import loaded, open_fake


@pytest.fixture
def model_on():
    """Make ready models on given devices, and close them at the end."""
    models = []

    def make(device):
        session = open_fake()
        session.device = device
        models.append(Model("m", str(len(models) + 1)))
        models[-1].start(loaded(session))
        return models[-1]

    yield make
    for model in models:
        model.close()


def samples(models, memory):
    return {
        (sample.name, sample.labels["gpu"]): sample.value
        for metric in GpuCollector(models, memory).collect()
        for sample in metric.samples
    }


def test_each_gpu_once(model_on):
    """Each GPU is reported once, however many models share it."""
    models = [model_on(Device("cuda", index)) for index in (0, 1, 1)]
    found = samples(models, lambda device: (100, 1000 * (device.index + 1)))

    assert {
        ("nv_gpu_memory_used_bytes", "cuda:0"): 900,
        ("nv_gpu_memory_total_bytes", "cuda:0"): 1000,
        ("nv_gpu_memory_used_bytes", "cuda:1"): 1900,
        ("nv_gpu_memory_total_bytes", "cuda:1"): 2000,
    } == found


def test_models_on_the_cpu_have_none(model_on):
    """Models on the CPU cause no query and no metric."""
    assert {} == samples([model_on(CPU), Model("loading", "1")], None)


def test_memory_that_is_not_known(model_on):
    """A GPU that cannot be queried has no metric and causes no error."""

    def memory(device):
        raise PackageError("no bindings")

    assert {} == samples([model_on(Device("cuda"))], memory)
