"""Models that draw random numbers: what half does to them is measured, and noise is taken for nothing else."""

import json

import numpy as np
import pytest

from demi.accuracy.varying import Varying
from demi.bundles.bundle import open_bundle
from demi.calibration.benchmark.bench import bench_bundle
from demi.calibration.explain.explanation import explain_bundle
from demi.calibration.gate.check import check_bundle
from demi.errors import ConversionError
from demi.exporter import convert
from demi.exporter.pipeline import export_bundle
from demi.exporter.reference import find_varying
from demi.exporter.request import ExportRequest
from demi.exporter.sources.options import SourceOptions
from demi.plan import Reason
from demi.runtime.base import CPU
from tests.exporter.planning.helpers import floats, listed
from tests.models import parse, prepared, text

NOISY = f"""
noisy (float[n, 16] x) => (float[n, 16] y, float[n, 16] clean)
<float[16, 16] w = {{{listed(floats(16, 16, seed=3))}}}>
{{
  [first] a = MatMul(x, w)
  [noise] r = RandomNormalLike(a)
  [sum] b = Add(a, r)
  [second] y = MatMul(b, w)
  [act] clean = Tanh(a)
}}
"""
X = floats(8, 16)


@pytest.fixture
def bundle(tmp_path):
    """The bundle of a model that adds noise on its way."""
    (tmp_path / "noisy.onnx").write_bytes(text(parse(NOISY)))
    request = ExportRequest(
        tmp_path / "noisy.onnx", tmp_path / "out" / "noisy", options=SourceOptions(samples=({"x": X},)), report=False
    )
    return export_bundle(request)


class TestExport:
    """Export of a random model."""

    def test_it_is_half_but_for_the_draws(self, bundle):
        """The products are half within the budget; the node that draws stays FP32, and says why."""
        plan = bundle.conversion.planned.plan

        assert plan.is_half("first")
        assert plan.is_half("second")
        assert (Reason.RANDOM, "RandomNormalLike draws random numbers") == (
            plan["noise"].reason,
            plan["noise"].evidence,
        )

    def test_every_output_is_judged(self, bundle):
        """With the same numbers on both sides the error is that of rounding."""
        errors = {diff.output: diff.relative_l2 for diff in bundle.conversion.comparison.outputs}

        assert {"y", "clean"} == errors.keys()
        assert 0 < errors["y"] < 2e-3

    def test_the_bundle_knows_what_varies(self, bundle):
        """The manifest and accuracy.json name the output that differs from run to run."""
        assert Varying(drawn=("y",)) == bundle.manifest.varying
        assert {"drawn": ["y"], "unsteady": []} == json.loads((bundle.path / "accuracy.json").read_bytes())["varying"]

    def test_a_model_without_draws(self):
        """Nothing varies in a model that draws nothing."""
        feeds = ({"y": np.ones(3, np.float32)},) * 2
        model = prepared("m (float[n] x) => (float[n] y) { y = Neg(x) }")

        assert Varying() == find_varying(model, {"x": np.ones(3, np.float32)}, feeds)

    def test_what_varies_whatever_is_drawn(self):
        """Two runs with the same draws that differ all the same are never compared."""
        model = prepared("m (float[n] x) => (float[n] y, float[n] z) { y = Neg(x) z = Abs(x) }")
        one = {"y": np.ones(3, np.float32), "z": np.ones(3, np.float32)}

        found = find_varying(model, {"x": np.ones(3, np.float32)}, (one, one | {"z": one["z"] + 1}))

        assert Varying(unsteady=("z",)) == found
        assert {"y"} == found.comparable(one).keys()

    def test_nothing_left_to_judge(self):
        """A model of which every output differs whatever is drawn cannot be measured."""
        model = prepared("m (float[n] x) => (float[n] y) { y = Neg(x) }")
        feeds = {"x": np.ones(3, np.float32)}

        with pytest.raises(ConversionError, match="every output differs from run to run"):
            find_varying(model, feeds, ({"y": np.ones(1)}, {"y": np.zeros(1)}))

    @pytest.mark.parametrize(
        "body",
        [
            "r = RandomUniformLike(a) b = Add(a, r)",
            "r = RandomNormal <shape = [8, 16]> () b = Add(a, r)",
            "half = Constant <value_float = 0.5> () yes = Constant <value: tensor = bool {1}> () b = Dropout(a, half, yes)",
            "p = Sigmoid(x) r = Bernoulli(p) b = Mul(a, r)",
        ],
        ids=["uniform", "normal", "dropout", "bernoulli"],
    )
    def test_every_kind_of_draw(self, body):
        """Products around any kind of draw are half, and the error is that of rounding."""
        source = NOISY.replace("[noise] r = RandomNormalLike(a)", "").replace("[sum] b = Add(a, r)", body)

        found = convert(_proto(source), [{"x": X}])

        assert {"MatMul"} <= {each.op_type for each in found.plan.decisions.values() if each.is_half}
        assert 0 < found.comparison.worst.relative_l2 < 2e-3


class TestAfterwards:
    """The other commands on its bundle."""

    def test_check_agrees(self, bundle):
        """`demi check` measures what the export did, the reference included."""
        checked = check_bundle(bundle.path)

        assert checked
        assert 0 == checked.reference_error
        assert bundle.conversion.comparison.worst.relative_l2 == pytest.approx(checked.comparison.worst.relative_l2)
        assert "random numbers" in checked.varying[0]

    def test_explain_agrees(self, bundle):
        """`demi explain` traces rounding, and no noise."""
        found = explain_bundle(open_bundle(bundle.path))

        assert bundle.conversion.comparison.worst.relative_l2 == pytest.approx(found.comparison.worst.relative_l2)
        assert all(node.adds < 2e-3 for node in found.nodes if node.adds is not None)

    def test_bench_agrees(self, bundle):
        """`demi bench` compares under the emulator, with the same draws."""
        found = bench_bundle(open_bundle(bundle.path), CPU, [8], 0.01)

        assert found.comparison
        assert bundle.conversion.comparison.worst.relative_l2 == pytest.approx(found.comparison.worst.relative_l2)


def _proto(source):
    import onnx_ir as ir

    return ir.to_proto(parse(source))


TRAINING = """
trains (float[n, 2] x) => (float[n, 2] y)
<float[2] one = {1, 1}, float[2] none = {0, 0}, float[2] mean = {0, 0}, float[2] spread = {1, 1}>
{ [norm] y, later_mean, later_spread = BatchNormalization <training_mode = 1> (x, one, none, mean, spread) }
"""


def test_a_model_that_still_trains_is_refused(tmp_path):
    """BatchNormalization in training mode is not random: its statistics change with every request."""
    (tmp_path / "trains.onnx").write_bytes(text(parse(TRAINING)))
    request = ExportRequest(
        tmp_path / "trains.onnx", tmp_path / "out", options=SourceOptions(samples=({"x": X[:, :2]},)), report=False
    )

    with pytest.raises(ConversionError, match=r"`norm` \(BatchNormalization\) is in training mode") as refused:
        export_bundle(request)

    assert "model.eval()" in refused.value.hint
