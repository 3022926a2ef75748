"""Engine choice: a TensorRT engine built on this machine or ONNX Runtime, and the reason in the log."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from demi.bundles.bundle import open_bundle
from demi.bundles.manifest import BatchSpec
from demi.engines.key import make_key
from demi.engines.record import EngineRecord, ShapeRange, write_engine
from demi.errors import BundleError, DeviceError, InputError, SourceError
from demi.runtime.base import CPU, Device
from demi.runtime.onnxruntime.conv_layout import RUNS, WARM_UPS, faster_layout, has_convolutions
from demi.runtime.onnxruntime.session import SessionSettings
from demi.runtime.tensorrt.session import TrtSession
from demi.server.models.engine_choice import graph_rows
from demi.server.models.loading import load_bundle
from demi.server.settings import ServeSettings
from tests.fake_cuda import FakeCudart
from tests.fake_trt import FakeTrt, install, serialized_engine
from tests.server.bundles import FRAGILE, GOLDEN_X, MIXED, SCALE, write_bundle
from tests.server.fakes import PROOF, DoublingSession, open_fake


@pytest.fixture
def trt(monkeypatch):
    """Machine with TensorRT and two GPUs."""
    return install(monkeypatch, FakeTrt(FakeCudart()))


@pytest.fixture
def path(tmp_path):
    """Bundle of y = x * (2, 3, 4) with batches of at most eight rows."""
    return write_bundle(tmp_path / "b", MIXED, golden=GOLDEN_X)


@pytest.fixture
def settings(tmp_path):
    """Settings of a server on a GPU whose machine has a key."""
    make_key(tmp_path / "engine.key")
    return ServeSettings(devices=(Device("cuda", 1),), engine_key=tmp_path / "engine.key")


def add_engine(path: Path, trt: FakeTrt, key: Path, rows: int = 4, **changes: object) -> None:
    """Write an engine for the bundle at `path`, of at most `rows` rows, as this machine would build it."""
    bundle = open_bundle(path)
    shapes = ShapeRange((1, 3), (rows, 3), (rows, 3))
    plan = serialized_engine(trt, bundle.model_path.read_bytes(), {"x": dataclasses.astuple(shapes)}, path.parent)
    record = EngineRecord(
        schema=1,
        created="",
        tensorrt=trt.__version__,
        gpu="Fake GPU",
        capability=(9, 0),
        driver_cuda=(13, 0),
        shapes={"x": shapes},
        model_sha256=bundle.manifest.files["model.onnx"].sha256,
        engine_sha256="",
        engine_bytes=0,
    )
    write_engine(bundle, dataclasses.replace(record, **changes), plan, make_key(key))


def opener(*_):
    return open_fake()


def test_an_engine_of_this_machine_serves(trt, path, settings):
    """The engine answers, and no run has more rows than it was built for."""
    add_engine(path, trt, settings.engine_key)
    found = load_bundle(path, settings, opener)

    assert isinstance(found.session, TrtSession)
    assert [[2, 3, 4]] == found.session.run({"x": np.ones((1, 3), np.float32)})["y"].tolist()
    assert (4, "fp16") == (found.signature.max_batch_size, found.precision)


def test_golden_inputs_beyond_the_engine(trt, path, settings):
    """An engine built for fewer rows than the golden inputs have is served, and its warm-up skips those."""
    assert len(GOLDEN_X["x"]) > 1
    add_engine(path, trt, settings.engine_key, rows=1)
    found = load_bundle(path, dataclasses.replace(settings, engine="require"), opener)

    assert isinstance(found.session, TrtSession)
    assert 1 == found.signature.max_batch_size


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"tensorrt": "10.16.1.11"}, "built with TensorRT 10.16.1.11, but 11.4.0.106 is installed"),
        ({"capability": (8, 0)}, "built for compute capability 8.0"),
        ({"gpu": "Another GPU"}, "built for Another GPU"),
        ({"model_sha256": "0" * 64}, "built from another model.onnx"),
    ],
)
def test_an_engine_that_does_not_fit(trt, path, settings, changes, why, caplog):
    """`auto` serves with ONNX Runtime and logs why and how to rebuild the engine; `require` raises that as an error."""
    add_engine(path, trt, settings.engine_key, **changes)
    found = load_bundle(path, settings, opener)

    assert isinstance(found.session, DoublingSession)
    assert why in caplog.text
    assert "demi export --tensorrt" in caplog.text
    with pytest.raises((DeviceError, BundleError), match=why):
        load_bundle(path, dataclasses.replace(settings, engine="require"), opener)


def test_an_engine_from_elsewhere_is_never_loaded(trt, path, settings, tmp_path, caplog):
    """An engine that came with the bundle is ignored, and none of its bytes reach TensorRT."""
    add_engine(path, trt, tmp_path / "another.key")
    trt.load = None

    assert isinstance(load_bundle(path, settings, opener).session, DoublingSession)
    assert "was not built here" in caplog.text


def test_engine_off(trt, path, settings, caplog):
    """`--engine off` serves with ONNX Runtime and logs nothing."""
    add_engine(path, trt, settings.engine_key)
    found = load_bundle(path, dataclasses.replace(settings, engine="off"), opener)

    assert isinstance(found.session, DoublingSession)
    assert "" == caplog.text


def test_without_an_engine(trt, path, settings, caplog):
    """`auto` works without one; `require` raises an error with the command that builds one."""
    assert isinstance(load_bundle(path, settings, opener).session, DoublingSession)
    assert "engine" not in caplog.text
    with pytest.raises(BundleError, match="the bundle has no engine") as caught:
        load_bundle(path, dataclasses.replace(settings, engine="require"), opener)
    assert f"demi export --tensorrt {path}" in caught.value.hint


def test_an_engine_needs_a_gpu(path, settings):
    """On the CPU, `auto` serves with ONNX Runtime, and `require` raises an error."""
    on_cpu = dataclasses.replace(settings, devices=(CPU,))

    assert isinstance(load_bundle(path, on_cpu, opener).session, DoublingSession)
    with pytest.raises(DeviceError, match="engines run on a GPU"):
        load_bundle(path, dataclasses.replace(on_cpu, engine="require"), opener)


def test_a_readable_key_is_not_trusted(trt, path, settings, caplog):
    """No engine is loaded if other users can read the key."""
    add_engine(path, trt, settings.engine_key)
    settings.engine_key.chmod(0o644)

    assert isinstance(load_bundle(path, settings, opener).session, DoublingSession)
    assert "not secret" in caplog.text
    with pytest.raises(InputError, match="not secret"):
        load_bundle(path, dataclasses.replace(settings, engine="require"), opener)


class TestSessionSettings:
    """Session settings that follow from the server's settings."""

    @pytest.mark.parametrize(
        ("changes", "expected"),
        [
            ({}, SessionSettings()),
            ({"device_memory_bytes": 1 << 30}, SessionSettings(memory_bytes=1 << 30)),
            ({"cuda_graphs": True}, SessionSettings(graph_rows=8)),
            ({"cuda_graphs": True, "max_batch": 16}, SessionSettings(graph_rows=16)),
            ({"cuda_graphs": True, "devices": (CPU,)}, SessionSettings()),
        ],
    )
    def test_each_setting(self, path, settings, changes, expected):
        """On a GPU the arena is limited, and graphs are recorded up to the largest batch."""
        asked = []

        def opener(model, device, wanted):
            asked.append(dataclasses.replace(wanted, threads=0))
            return open_fake()

        load_bundle(path, dataclasses.replace(settings, **changes), opener)
        assert [expected] == asked

    def test_shapes_that_do_not_follow_from_rows(self, tmp_path, settings, caplog):
        """A model with other dynamic axes runs without graphs, and the log says why."""
        bundle = open_bundle(write_bundle(tmp_path / "f", FRAGILE, batch=BatchSpec(free=True, proof=PROOF)))

        assert 0 == graph_rows(bundle, dataclasses.replace(settings, cuda_graphs=True))
        assert "CUDA graphs are off" in caplog.text

    def test_every_device_opens_its_own_engine(self, trt, path, settings):
        """An engine is opened on each of several GPUs."""
        add_engine(path, trt, settings.engine_key)
        found = load_bundle(path, dataclasses.replace(settings, devices=(Device("cuda", 0), Device("cuda", 1))), opener)

        assert ["cuda:0", "cuda:1"] == [str(session.device) for session in found.sessions]


class ConvolvingSession(DoublingSession):
    """Session with a convolution whose layout decides how many ticks of the clock a run takes."""

    clock = 0.0
    ticks = 1.0

    def operators(self):
        return {"Conv", "Relu"}

    def run(self, feeds, outputs=None):
        type(self).clock += self.ticks
        return super().run(feeds, outputs)


def convolving(ticks):
    session = ConvolvingSession()
    session.gate.set()
    session.ticks = ticks
    return session


class TestLayout:
    """Layout of convolutions, chosen by measurement."""

    @pytest.mark.parametrize(("ticks", "last"), [(0.5, True), (0.97, False), (1.5, False)])
    def test_the_clearly_faster_layout_is_used(self, ticks, last):
        """Channels last is used only if it is clearly faster."""
        first, other = convolving(1.0), convolving(ticks)
        chosen = faster_layout(
            first, lambda: other, {"x": np.zeros((1, 3), np.float32)}, lambda: ConvolvingSession.clock
        )

        assert chosen is (other if last else first)
        assert WARM_UPS + RUNS == len(first.runs) == len(other.runs)

    def test_a_layout_that_does_not_run(self, caplog):
        """A provider without a kernel for channels last serves channels first."""
        first = convolving(1.0)

        def fails():
            raise SourceError("no kernel")

        assert first is faster_layout(first, fails, {"x": np.zeros((1, 3), np.float32)})
        assert "channels first: no kernel" in caplog.text

    def test_only_convolutions_are_measured(self):
        """Models without convolutions, and sessions that do not report any, are not measured."""
        assert has_convolutions(convolving(1.0))
        assert not has_convolutions(open_fake())

    def test_golden_inputs_decide(self, path, settings):
        """The server opens both layouts and keeps the faster."""
        opened = []

        def opener(model, device, wanted):
            opened.append(wanted.nhwc)
            return convolving(0.0)

        load_bundle(path, settings, opener)
        assert [False, True] == opened

    def test_without_golden_inputs(self, tmp_path, settings):
        """Without golden inputs nothing is measured."""
        opened = []

        def opener(*arguments):
            opened.append(arguments)
            return convolving(1.0)

        load_bundle(write_bundle(tmp_path / "c", SCALE), settings, opener)
        assert 1 == len(opened)
