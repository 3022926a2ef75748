"""Measure node costs on a device, and plan with them."""

import json
import sys

import numpy as np
import pytest

from demi.calibration.samples import Samples
from demi.cli.main import main
from demi.errors import InputError
from demi.exporter.planning.costs import DeviceCosts, read_costs
from demi.exporter.planning.measured_costs import (
    RUNS,
    WARM_UPS,
    NodeTime,
    costs_json,
    measure_costs,
    node_times,
    read_profile,
)
from demi.exporter.tensorrt.layer_times import engine_node_times, share_times
from demi.exporter.tensorrt.layers import Layer
from demi.plan import read_plan
from demi.runtime.base import CPU, Device
from tests.fake_cuda import FakeCudart
from tests.fake_trt import FakeTrt, install
from tests.models import LOOP, MLP, parse, prepared, text

X = np.random.default_rng(0).random((6, 4), np.float32)


def event(name, microseconds, *kinds, category="Node", **arguments):
    arguments["input_type_shape"] = [{kind: [1]} for kind in kinds]
    return {"cat": category, "name": f"{name}_kernel_time", "dur": microseconds, "args": arguments}


def profile(*events):
    return json.dumps(list(events)).encode()


class TestProfile:
    """ONNX Runtime's profile, read."""

    def test_the_first_runs_do_not_count(self):
        """A node's time is the median of its runs, without those that warm up."""
        events = [event("a", 1000)] * WARM_UPS + [event("a", 5), event("a", 7), event("a", 6)]

        assert 6e-6 == pytest.approx(read_profile(profile(*events), WARM_UPS + 3)["a"].seconds)

    def test_a_node_in_a_loop(self):
        """A node that runs twice in each run costs twice."""
        events = [event("a", 3), event("a", 4)] * (WARM_UPS + 2)

        assert 7e-6 == pytest.approx(read_profile(profile(*events), WARM_UPS + 2)["a"].seconds)

    def test_types_and_bytes(self):
        """A profile gives the types that a node read and the bytes that it moved."""
        found = read_profile(
            profile(
                event("half", 1, "float16", activation_size="8", output_size="4", parameter_size="2"),
                event("wide", 1, "float", "int64"),
            ),
            1,
        )

        assert {"half": (True, 14), "wide": (False, 0)} == {
            name: (each.in_half, each.bytes) for name, each in found.items()
        }

    def test_other_events_are_no_nodes(self):
        """Sessions, kernels and fences are left out."""
        assert {} == read_profile(profile(event("a", 1, category="Session"), {"cat": "Node", "name": "a_before"}), 1)

    def test_copies_between_host_and_device_are_no_nodes(self):
        """Copies that ONNX Runtime inserts for a GPU do not count as casts."""
        copies = [
            event("Memcpy", 9, "float", op_name="MemcpyFromHost", output_size="400"),
            event("Memcpy_token_1", 9, "float", op_name="MemcpyToHost", output_size="400"),
        ]
        assert {"a"} == set(read_profile(profile(*copies, event("a", 1, "float", op_name="Add")), 1))


class TestNodeTimes:
    """A real profile of a real session."""

    def test_every_node_is_timed_under_its_own_name(self):
        """Nothing is fused, and every time is above zero."""
        found = node_times(prepared(MLP), {"x": X}, CPU)

        assert {"first", "bias", "act", "second"} == set(found)
        assert all(isinstance(each, NodeTime) and each.seconds > 0 for each in found.values())

    def test_loops(self):
        """Nodes of a body are timed over all iterations."""
        model = prepared(LOOP)
        names = {node.name for node in model.graph.all_nodes()}

        assert set(node_times(model, {"x": np.float32([1.0, 2.0])}, CPU)) <= names


class TestMeasureCosts:
    """Costs for the planner."""

    def measured(self, **fields):
        return measure_costs(
            prepared(MLP), Samples(({"x": X[:1]}, {"x": X}), "a test"), "fp16", CPU, DeviceCosts(**fields)
        )

    def test_every_node_has_both_times(self):
        """Seconds in half and in single by name, for the samples as they are."""
        costs = self.measured(half_flops=1.0).costs

        assert {"first", "bias", "act", "second"} == set(costs.seconds)
        assert (1, 0.0, 1.0) == (costs.rows, costs.launch_s, costs.half_flops)
        assert costs.bandwidth != DeviceCosts().bandwidth

    def test_half_that_is_computed_in_single_gains_nothing(self):
        """A CPU has no half MatMul: half is never cheaper there, and the number of such nodes is reported."""
        found = self.measured()

        assert (4, 4) == (found.wide, found.half)
        assert all(half >= single for half, single in found.costs.seconds.values())

    def test_bfloat16_on_a_cpu(self):
        """BF16 costs on a CPU without BF16 kernels are an error."""
        with pytest.raises(InputError, match="no bfloat16 kernels on the CPU"):
            measure_costs(prepared(MLP), Samples(({"x": X},), "a test"), "bf16", CPU, DeviceCosts())

    def test_the_file_is_one_that_costs_reads(self, tmp_path):
        """Measured costs can be read back for another plan."""
        found = self.measured()
        (tmp_path / "costs.json").write_bytes(costs_json(found))

        assert found.costs == read_costs(tmp_path / "costs.json")


class TestCommand:
    """`demi calibrate --profile`."""

    def test_a_plan_for_what_was_measured(self, tmp_path, capsys):
        """On a CPU, half gains nothing: the plan keeps FP32, says that it is cheaper, and `--costs` repeats it."""
        (tmp_path / "small.onnx").write_bytes(text(parse(MLP)))
        np.savez(tmp_path / "x.npz", x=X)
        arguments = [str(tmp_path / "small.onnx"), "--sample", str(tmp_path / "x.npz"), "-o", str(tmp_path)]
        assert 0 == main(["calibrate", *arguments, "--profile"])
        captured = capsys.readouterr()

        assert f"costs: {tmp_path / 'small.costs.json'}" in captured.out
        assert "cpu has no half kernels for 4 of 4 nodes" in captured.err
        assert not any(decision.is_half for decision in read_plan(tmp_path / "small.plan.json").decisions.values())

        assert 0 == main(["calibrate", *arguments, "--costs", str(tmp_path / "small.costs.json")])
        assert not any(decision.is_half for decision in read_plan(tmp_path / "small.plan.json").decisions.values())

    def test_profiling_needs_a_planner(self, tmp_path, capsys):
        """Costs are refused with operator lists."""
        assert 2 == main(["calibrate", str(tmp_path / "m.onnx"), "--profile", "--no-calibrate"])
        assert "--profile measures costs" in capsys.readouterr().err


class TestTensorRT:
    """Times of TensorRT's layers, on a fake: everything is one layer of 1 ms in FP32 and 0.5 ms in half."""

    @pytest.fixture
    def trt(self, monkeypatch, tmp_path):
        """A machine with TensorRT."""
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        return install(monkeypatch, FakeTrt(FakeCudart()))

    def test_a_layer_is_shared_by_work(self, trt):
        """Matrix products get nearly all of a layer's time, and the shares add up to it."""
        found = engine_node_times(prepared(MLP), {"x": X}, Device("cuda"))

        assert {"first", "bias", "act", "second"} == set(found)
        assert 1e-3 == pytest.approx(sum(each.seconds for each in found.values()))
        assert found["first"].seconds > 3 * found["bias"].seconds
        assert {"x": [[6, 4]] * 3} == trt.configs[0].profiles[0].shapes

    def test_layers_without_known_work(self):
        """Nodes of unknown work share evenly, a node in two layers gets both parts, a layer without nodes is dropped."""
        layers = [
            Layer("copy", mean_ms=9.0),
            Layer("one", nodes=("a", "b"), mean_ms=2.0),
            Layer("two", nodes=("b", "c"), mean_ms=4.0),
            Layer("untimed", nodes=("d",)),
        ]
        found = share_times(layers, {"b": 1.0, "c": 3.0})

        assert {"a": 0.0, "b": 3e-3, "c": 3e-3, "d": 0.0} == {name: each.seconds for name, each in found.items()}
        assert 1e-3 == share_times(layers, {})["a"].seconds

    def test_a_plan_for_what_was_measured(self, trt, tmp_path, capsys):
        """Half is measured to be faster, and is planned; `--costs` reads what was measured."""
        (tmp_path / "small.onnx").write_bytes(text(parse(MLP)))
        arguments = [str(tmp_path / "small.onnx"), "-o", str(tmp_path)]
        assert 0 == main(["calibrate", *arguments, "--profile", "--device", "cuda", "--tensorrt"])
        costs = read_costs(tmp_path / "small.costs.json")

        assert 2 == len(trt.configs)
        assert all(half < single for half, single in costs.seconds.values())
        assert read_plan(tmp_path / "small.plan.json").decisions["first"].is_half
        assert "no half kernels" not in capsys.readouterr().err

    @pytest.mark.parametrize("flags", [(), ("--profile",), ("--profile", "--device", "cpu")])
    def test_engines_need_a_gpu(self, tmp_path, capsys, flags):
        """The option is refused before anything is read."""
        assert 2 == main(["calibrate", str(tmp_path / "none.onnx"), "--tensorrt", *flags])
        assert "engines are timed on a GPU" in capsys.readouterr().err

    def test_without_tensorrt(self, monkeypatch, tmp_path, capsys):
        """A missing package is reported before the slow part, with exit code 3."""
        monkeypatch.setitem(sys.modules, "tensorrt", None)
        (tmp_path / "m.onnx").write_bytes(text(parse(MLP)))
        flags = ["--tensorrt", "--profile", "--device", "cuda"]

        assert 3 == main(["calibrate", str(tmp_path / "m.onnx"), "-o", str(tmp_path), *flags])
        assert "demi-inference[tensorrt]" in capsys.readouterr().err


def test_runs_are_enough_for_a_median():
    """The median of a few runs is robust against one disturbed run."""
    assert RUNS >= 5
