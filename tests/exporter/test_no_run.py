"""`--no-run`: what only the target can run is converted all the same, and said to be unproven wherever one looks."""

from __future__ import annotations

import json

import onnx
import onnx_ir as ir
import pytest

from demi.bundles.bundle import open_bundle
from demi.calibration.benchmark.bench import bench_bundle
from demi.calibration.explain.explanation import explain_bundle
from demi.calibration.gate.check import check_bundle
from demi.errors import BundleError, InputError, SourceError
from demi.exporter import convert
from demi.exporter.no_run import export_unproven
from demi.exporter.pipeline import export_bundle
from demi.exporter.planning.find_plan import PlanSettings
from demi.exporter.request import ExportRequest
from demi.plan import Precision, Reason, make_plan
from demi.runtime.base import CPU
from demi.tensors import DType, TensorSpec
from tests.models import MLP, parse, text

PLUGIN = """
<ir_version: 8, opset_import: ["" : 17, "trt.plugins" : 1]>
plugin (float[n, 2] x) => (float[n, 2] y) <float[2, 2] w = {0.5, -0.5, 0.25, 1.0}>
{
  [before] a = MatMul(x, w)
  [pool] b = trt.plugins.VoxelPool(a)
  [after] y = MatMul(b, w)
}
"""
IN_ONNX_DOMAIN = PLUGIN.replace("trt.plugins.VoxelPool", "VoxelPool_TRT")
"""As graph editors write plugins: in ONNX's own domain, where TensorRT looks for them."""
SOURCES = pytest.mark.parametrize("source", [PLUGIN, IN_ONNX_DOMAIN], ids=["own domain", "onnx domain"])


@pytest.fixture
def request_for(tmp_path):
    """Makes a request to export a model in text."""

    def make(source=PLUGIN, **fields):
        (tmp_path / "model.onnx").write_bytes(text(parse(source)))
        fields = {"report": False, "settings": PlanSettings(calibrate=False)} | fields
        return ExportRequest(source=tmp_path / "model.onnx", output=tmp_path / "out" / "tiny", **fields)

    return make


@SOURCES
def test_it_is_converted(request_for, source):
    """Nodes around the plugin are half, the plugin keeps its types, and the file is valid."""
    result = export_unproven(request_for(source))

    model = ir.load(result.path / "model.onnx")
    assert {"before": Precision.HALF, "pool": Precision.SINGLE, "after": Precision.HALF} == {
        name: decision.precision for name, decision in result.plan.decisions.items()
    }
    assert ["MatMul", "MatMul"] == [
        node.op_type
        for node in model.graph
        if ir.DataType.FLOAT16 in {value.dtype for value in node.outputs} and node.op_type != "Cast"
    ]


def test_the_bundle_says_that_nothing_is_proven(request_for):
    """The manifest and accuracy.json do, and there are no golden outputs."""
    result = export_unproven(request_for())

    bundle = open_bundle(result.path)
    assert not bundle.manifest.proven
    assert not bundle.manifest.batch.free
    assert {"accuracy.json", "model.onnx", "plan.json"} == set(bundle.manifest.files)
    assert "nothing was run" == bundle.manifest.provenance.samples
    document = json.loads((result.path / "accuracy.json").read_text())
    assert None is document["within_budget"]
    assert "nothing was run" in document["method"]
    assert ("trt.plugins::VoxelPool",) == result.foreign


def test_the_tensors_are_those_of_the_file(request_for):
    """Names, types and shapes come from the graph."""
    manifest = export_unproven(request_for()).manifest

    assert (TensorSpec("x", DType.FP32, ("n", 2)),) == manifest.inputs
    assert (TensorSpec("y", DType.FP32, ("n", 2)),) == manifest.outputs


def test_a_plan_is_carried_out(request_for):
    """The user's own decisions count here as well."""
    plan = export_unproven(request_for()).plan
    kept = [decision for decision in plan.decisions.values() if decision.node != "after"]

    again = export_unproven(request_for(plan=make_plan("fp16", kept), force=True))

    assert 1 == again.plan.half_nodes


def test_controls_are_carried_out(request_for):
    """`--keep-fp32` works as usual, and an unknown node is an error."""
    kept = export_unproven(request_for(settings=PlanSettings(calibrate=False, keep_fp32=("after",))))

    assert Reason.PINNED is kept.plan["after"].reason
    with pytest.raises(InputError, match="matches no node"):
        export_unproven(request_for(settings=PlanSettings(calibrate=False, keep_fp32=("afte",)), force=True))


@pytest.mark.parametrize(
    "measure",
    [
        check_bundle,
        lambda path: bench_bundle(open_bundle(path), CPU, [1], 0.1),
        lambda path: explain_bundle(open_bundle(path)),
    ],
    ids=["check", "bench", "explain"],
)
def test_nothing_can_be_measured(request_for, measure):
    """Commands that need FP32's outputs report that there are none, and why."""
    with pytest.raises(BundleError, match="exported with --no-run"):
        measure(export_unproven(request_for()).path)


@SOURCES
def test_without_it_the_way_is_named(request_for, source):
    """An export that would run the model refuses at once, and names the flag."""
    with pytest.raises(SourceError, match="VoxelPool") as caught:
        export_bundle(request_for(source))

    assert "--no-run" in str(caught.value.hint)
    assert not (request_for(source).output).exists()


def test_the_api_names_its_own_way():
    """`convert` takes `verify=False`."""
    with pytest.raises(SourceError, match="VoxelPool") as caught:
        convert(ir.to_proto(parse(PLUGIN)))

    assert "verify=False" in str(caught.value.hint)


def test_a_function_of_the_model_is_no_foreign_operator(request_for):
    """A function that the file defines is known."""
    source = """
    <ir_version: 8, opset_import: ["" : 17, "mine" : 1]>
    m (float[n, 2] x) => (float[n, 2] y) { y = mine.Twice(x) }
    <domain: "mine", opset_import: ["" : 17]>
    Twice (a) => (b) { b = Add(a, a) }
    """

    assert export_bundle(request_for(source)).conversion.comparison
    assert () == export_unproven(request_for(source, force=True)).foreign


def test_it_takes_onnx_files(tmp_path):
    """An export from PyTorch has to be run."""
    (tmp_path / "model.pt2").write_bytes(b"anything")

    with pytest.raises(InputError, match=r"requires an \.onnx file"):
        export_unproven(ExportRequest(tmp_path / "model.pt2", tmp_path / "out"))


def test_a_model_that_is_wrong_leaves_nothing(request_for):
    """A file that is not valid is refused as ever."""
    with pytest.raises(SourceError, match="nowhere"):
        export_unproven(request_for(PLUGIN.replace("(b, w)", "(nowhere, w)")))

    assert not request_for().output.exists()


def test_a_model_that_could_run(request_for):
    """It may be left unproven, too, and is marked so."""
    result = export_unproven(request_for(MLP))

    assert not result.manifest.proven
    assert onnx.load(result.path / "model.onnx").graph.node
