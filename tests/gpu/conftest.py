"""Requirements of tests on a GPU, and the reasons for skipping them."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest

from demi.errors import DemiError
from demi.runtime.base import Device
from demi.runtime.cuda.bindings import find_gpu
from demi.runtime.onnxruntime.session import open_session
from demi.runtime.tensorrt.session import require_tensorrt
from tests.calibration.bundles import export
from tests.models import MLP, parse, text

GPU = Device("cuda")


@functools.cache
def why_no_gpu() -> str:
    """Return the reason that ONNX Runtime cannot use a GPU here; empty if it can."""
    try:
        open_session(text(parse(MLP)), GPU).run({"x": np.zeros((1, 4), np.float32)})
    except DemiError as error:
        return error.message
    return "" if find_gpu(GPU) else "CUDA's Python bindings are not installed"


@functools.cache
def why_no_tensorrt() -> str:
    """Return the reason that TensorRT cannot be used here; empty if it can."""
    try:
        require_tensorrt()
    except DemiError as error:
        return error.message
    return why_no_gpu()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test of this folder as `gpu`, and skip it with the reason if there is no GPU."""
    for item in items:
        if Path(__file__).parent not in item.path.parents:
            continue
        item.add_marker(pytest.mark.gpu)
        why = why_no_tensorrt() if "tensorrt" in item.path.name else why_no_gpu()
        if why:
            item.add_marker(pytest.mark.skip(reason=why))


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """Return a half-precision bundle of two layers, as the folder of its model."""
    (tmp_path / "models").mkdir()
    return export(tmp_path / "models").parent


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Use a separate folder for keys and caches."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
