"""`demi export` as one story: from a model file to a proved bundle, or to nothing at all."""

from __future__ import annotations

import json
import sys
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from demi.accuracy.budget import parse_budget
from demi.bundles.bundle import digest, open_bundle
from demi.calibration.gate.check import check_bundle
from demi.errors import (
    BundleError,
    DefectError,
    InputError,
    OverBudgetError,
    SampleError,
    SourceError,
)
from demi.exporter.bundle.write import check_model
from demi.exporter.passes.lower import apply_plan
from demi.exporter.pipeline import export_bundle
from demi.exporter.planning.find_plan import PlanSettings
from demi.exporter.request import ExportRequest
from demi.exporter.sources.options import SourceOptions
from demi.plan import Reason, make_plan, read_plan
from demi.runtime.onnxruntime.session import open_session
from demi.tensors import DType, TensorSpec
from tests.models import EMBEDDING, MLP, OVERFLOW, SQUARES, parse, prepared, text

X = np.random.default_rng(0).standard_normal((20, 4)).astype(np.float32)
WIDE = """
wide (float[batch, 256] x) => (float[batch, 256] y)
{
  [first] a = MatMul(x, w1)
  [second] y = MatMul(a, w2)
}
"""


@pytest.fixture
def folder(tmp_path):
    """An empty folder that holds the sources, beside one for the bundles."""
    (tmp_path / "out").mkdir()
    return tmp_path


@pytest.fixture
def request_for(folder):
    """Makes a request to export a model in text."""

    def make(source=MLP, samples=({"x": X},), settings=None, **fields):
        (folder / "model.onnx").write_bytes(text(parse(source)))
        return ExportRequest(
            source=folder / "model.onnx",
            output=folder / "out" / "tiny",
            settings=settings or PlanSettings(calibrate=False),
            options=SourceOptions(samples=samples),
            samples_origin="x.npz" if samples else "",
            **{"report": False} | fields,
        )

    return make


def left(folder):
    """Return the files that a failed export has left."""
    return sorted(path.relative_to(folder / "out").as_posix() for path in (folder / "out").rglob("*"))


class TestBundle:
    """The contents of a bundle."""

    def test_files(self, request_for, folder):
        """A bundle holds both models, the plan, the ranges, the report and golden arrays, all with their digests."""
        result = export_bundle(request_for())
        names = ["accuracy.json", "golden.npz", "model.onnx", "plan.json", "ranges.json", "reference.onnx"]

        assert folder / "out" / "tiny" / "1" == result.path
        assert [*names[:1], *names[1:2], "manifest.json", *names[2:]] == sorted(
            path.name for path in result.path.iterdir()
        )
        assert names == sorted(open_bundle(result.path).manifest.files)

    def test_manifest(self, request_for, folder):
        """The manifest has the model's inputs and outputs, and its source."""
        request = request_for(version=7, max_batch=16)
        manifest = open_bundle(export_bundle(request).path).manifest

        assert ("tiny", 7, "fp16") == (manifest.name, manifest.version, manifest.precision)
        assert (TensorSpec("x", DType.FP32, ("batch", 4)),) == manifest.inputs
        assert (TensorSpec("y", DType.FP32, ("batch", 2)),) == manifest.outputs
        assert (True, 16, "") == (manifest.batch.joins, manifest.batch.max_size, manifest.batch.reason)
        assert (1, 2, 3, 16) == manifest.batch.proof.sizes
        assert ("model.onnx", digest(request.source), "x.npz") == (
            manifest.provenance.source,
            manifest.provenance.source_sha256,
            manifest.provenance.samples,
        )
        assert {"demi", "onnx", "onnx-ir", "onnxruntime"} <= set(manifest.provenance.tools)

    def test_check_passes(self, request_for):
        """A bundle passes its own check."""
        assert check_bundle(export_bundle(request_for()).path)

    def test_model_is_mixed_and_reference_is_not(self, request_for):
        """`model.onnx` holds half weights, `reference.onnx` none."""
        path = export_bundle(request_for()).path
        types = {
            name: {value.dtype for value in ir.load(path / name).graph.initializers.values()}
            for name in ("model.onnx", "reference.onnx")
        }

        assert {"model.onnx": {ir.DataType.FLOAT16}, "reference.onnx": {ir.DataType.FLOAT}} == types

    def test_golden_rows(self, request_for):
        """Golden sets are a few rows each, and hold what FP32 answers."""
        golden = open_bundle(export_bundle(request_for()).path).golden()

        assert [8, 8, 4] == [len(feeds["x"]) for feeds in golden.inputs]
        np.testing.assert_array_equal(X[:8], golden.inputs[0]["x"])
        assert [8, 8, 4] == [len(feeds["y"]) for feeds in golden.outputs]

    def test_weights_are_about_half(self, folder):
        """A model of nothing but large weights takes half the bytes."""
        model = parse(WIDE)
        rng = np.random.default_rng(0)
        for name in ("w1", "w2"):
            array = rng.standard_normal((256, 256)).astype(np.float32)
            value = next(v for node in model.graph for v in node.inputs if v.name == name)
            value.const_value = ir.tensor(array, name=name)
            value.type, value.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(array.shape)
            model.graph.register_initializer(value)
        (folder / "wide.onnx").write_bytes(text(model))
        result = export_bundle(
            ExportRequest(
                source=folder / "wide.onnx", output=folder / "out" / "wide", settings=PlanSettings(calibrate=False)
            )
        )
        files = result.manifest.files

        assert 0.5 == result.half_bytes / result.fp32_bytes
        assert 0.5 == pytest.approx(files["model.onnx"].bytes / files["reference.onnx"].bytes, rel=0.01)

    def test_plan_is_in_it(self, request_for):
        """`plan.json` can be read back, and carried out again to the same model."""
        first = export_bundle(request_for(SQUARES, ({"x": X[:, 0]},)))
        plan = read_plan(first.path / "plan.json")
        again = export_bundle(request_for(SQUARES, ({"x": X[:, 0]},), plan=plan, force=True))

        assert Reason.EXPONENTIAL is plan["square"].reason
        assert first.manifest.files["model.onnx"] == again.manifest.files["model.onnx"]

    def test_accuracy_is_in_it(self, request_for):
        """`accuracy.json` says what was measured, and on what."""
        report = json.loads((export_bundle(request_for()).path / "accuracy.json").read_text())

        assert report["within_budget"]
        assert ["y"] == [diff["output"] for diff in report["outputs"]]
        assert {"origin": "x.npz", "drawn": False, "sets": 3} == report["samples"]

    def test_an_error_that_rests_on_a_few_rows(self, request_for):
        """A classifier that is sure of all rows but one has hardly any error on those: accuracy.json says so."""
        source = "m (float[n, 2] x) => (float[n, 2] y) { y = Softmax(x) }"
        x = np.zeros((16, 2), np.float32)
        x[:, 0] = 12.345
        x[3, 0] = 0.4567
        made = export_bundle(request_for(source, samples=({"x": x},), settings=PlanSettings(half_io=True)))

        assert 16 == json.loads((made.path / "accuracy.json").read_text())["uneven"]["y"]["rows"]

    def test_share_in_fp32(self, request_for):
        """The share in FP32 is reported where sizes were observed: all of it when every node is kept."""
        kept = PlanSettings(keep_fp32=("*",))
        report = json.loads((export_bundle(request_for(settings=kept)).path / "accuracy.json").read_text())

        assert {"flops": 1.0, "tensor_bytes": 1.0} == report["fp32_share"]

    @pytest.mark.parametrize("plan", [None, make_plan("fp16", [])], ids=["op list", "given"])
    def test_a_share_that_was_not_measured(self, request_for, plan):
        """A plan that was given or made without measuring has no share, rather than one of zero."""
        path = export_bundle(request_for(plan=plan)).path

        assert json.loads((path / "accuracy.json").read_text())["fp32_share"] is None


class TestFirstRun:
    """The half model runs once where it was made."""

    SCATTER = """
    <ir_version: 10, opset_import: ["" : 18]>
    m (float[n, 4] x) => (float[n, 4] y) <int64[1, 2] first = {0, 0}, float[1] one = {1.0}>
    { [it] a = ScatterND <reduction = "add"> (x, first, one) [act] y = Tanh(a) }
    """

    def test_it_stays_out_of_half(self, request_for):
        """A scatter that adds is planned in FP32, and the bundle runs."""
        result = export_bundle(request_for(self.SCATTER))

        assert "" == result.fails_here
        assert not result.conversion.planned.plan.is_half("it")

    def test_a_bundle_that_cannot_run_here_says_so(self, request_for):
        """Forced to half, the scatter has no kernel on this CPU: the result and accuracy.json say what happened."""
        result = export_bundle(request_for(self.SCATTER, settings=PlanSettings(force_half=("it",))))

        assert "ScatterND" in result.fails_here
        assert result.fails_here == json.loads((result.path / "accuracy.json").read_bytes())["fails_on_cpu"]

    def test_a_bundle_that_runs(self, request_for):
        """Any other bundle ran, and says nothing."""
        result = export_bundle(request_for())

        assert json.loads((result.path / "accuracy.json").read_bytes())["fails_on_cpu"] is None


class TestReport:
    """The report in `report.html`."""

    def test_it_is_in_the_bundle(self, request_for):
        """It is one more file, with its digest in the manifest."""
        result = export_bundle(request_for(report=True))

        assert "within budget" in (result.path / "report.html").read_text()
        assert "report.html" in open_bundle(result.path).manifest.files
        assert "" == result.no_report

    def test_it_can_be_made_again(self, request_for):
        """The same export writes the same report."""
        first = export_bundle(request_for(report=True)).manifest.files["report.html"]

        assert first == export_bundle(request_for(report=True, force=True)).manifest.files["report.html"]

    def test_without_its_packages(self, request_for, monkeypatch):
        """The bundle is written without it, and the missing packages are reported."""
        monkeypatch.setitem(sys.modules, "matplotlib", None)
        result = export_bundle(request_for(report=True))

        assert not (result.path / "report.html").exists()
        assert "demi-inference[report]" in result.no_report


class TestOptions:
    """The options of an export."""

    def test_no_reference(self, request_for):
        """Without the reference the bundle is smaller, and still passes its check."""
        path = export_bundle(request_for(reference=False)).path

        assert not (path / "reference.onnx").exists()
        assert check_bundle(path)

    def test_bf16(self, request_for):
        """A BF16 bundle holds BF16 weights, and passes its check on a machine without BF16."""
        budget = parse_budget(["relative_l2=5e-2"])
        result = export_bundle(request_for(settings=PlanSettings(precision="bf16", calibrate=False, budget=budget)))
        types = {value.dtype for value in ir.load(result.path / "model.onnx").graph.initializers.values()}

        assert {ir.DataType.BFLOAT16} == types
        assert "bf16" == result.manifest.precision
        assert check_bundle(result.path)

    def test_half_io(self, request_for):
        """Half inputs and outputs are in the manifest; golden arrays stay FP32."""
        result = export_bundle(request_for(settings=PlanSettings(calibrate=False, half_io=True)))

        assert (DType.FP16, DType.FP16) == (result.manifest.inputs[0].dtype, result.manifest.outputs[0].dtype)
        assert np.float32 == open_bundle(result.path).golden().inputs[0]["x"].dtype
        assert check_bundle(result.path)

    def test_a_budget_for_tokens_is_for_models_that_generate(self, request_for):
        """It would limit nothing here."""
        with pytest.raises(InputError, match="models that generate"):
            export_bundle(request_for(settings=PlanSettings(calibrate=False, budget=parse_budget(["tokens=0.9"]))))

    @pytest.mark.parametrize("calibrate", [True, False], ids=["measured", "listed"])
    def test_keep_fp32(self, request_for, calibrate):
        """Pinned nodes stay FP32, with the reason in the plan."""
        settings = PlanSettings(calibrate=calibrate, keep_fp32=("second",))
        plan = export_bundle(request_for(settings=settings)).conversion.planned.plan

        assert Reason.PINNED is plan["second"].reason
        assert not plan.is_half("second")

    def test_force(self, request_for):
        """Force replaces the bundle that is there."""
        export_bundle(request_for())
        other = export_bundle(request_for(SQUARES, ({"x": X[:, 0]},), force=True))

        assert ("n",) == open_bundle(other.path).manifest.inputs[0].shape

    def test_versions_stand_side_by_side(self, request_for, folder):
        """A new version leaves the old one alone."""
        export_bundle(request_for())
        export_bundle(request_for(version=2))

        assert 2 == open_bundle(folder / "out" / "tiny").manifest.version
        open_bundle(folder / "out" / "tiny" / "1")

    def test_measured_plan(self, request_for):
        """By default a plan is measured: ranges are in the bundle, and an overflow stays FP32."""
        samples = ({"x": np.float32([1024.0, 3.0])},)
        result = export_bundle(request_for(OVERFLOW, samples, settings=PlanSettings()))
        plan = result.conversion.planned.plan

        assert not plan.is_half("grow")
        assert not plan.is_half("shrink")
        assert json.loads((result.path / "ranges.json").read_text())

    def test_steps_are_shown(self, request_for):
        """Every phase is reported to the progress display."""
        seen = []
        export_bundle(request_for(), lambda name: seen.append(name) or nullcontext())

        assert "reading the model" == seen[0]
        assert "writing the bundle" == seen[-1]


class TestSamples:
    """The samples that accuracy is measured on."""

    def test_drawn_samples_say_so(self, request_for):
        """Without samples they are drawn, and the manifest says with which seed."""
        request = request_for(samples=())
        result = export_bundle(replace(request, options=SourceOptions(seed=5)))

        assert result.samples.drawn
        assert "drawn at random (seed 5)" in result.manifest.provenance.samples

    def test_drawn_ids_respect_the_embedding(self, request_for):
        """Drawn token ids stay below the rows of their table, and reach the last."""
        result = export_bundle(request_for(EMBEDDING, samples=()))
        ids = np.concatenate([feeds["input_ids"].ravel() for feeds in result.samples.feeds])

        assert (0, 4) == (ids.min(), ids.max())

    def test_examples_of_the_source(self, folder):
        """A `.pt2` is measured on the examples it was exported with."""
        import torch

        from tests.exporter.pytorch.torch_modules import build

        torch.export.save(torch.export.export(build(), (torch.from_numpy(X),)), folder / "m.pt2")
        result = export_bundle(
            ExportRequest(source=folder / "m.pt2", output=folder / "out" / "m", settings=PlanSettings(calibrate=False))
        )

        assert "the examples in the source file" == result.samples.origin
        assert result.export_error < 1e-5
        np.testing.assert_array_equal(X, result.samples.feeds[0]["x"])


class TestNothingIsLeft:
    """An export that fails leaves the disk as it was."""

    def test_over_budget(self, request_for, folder):
        """A model that cannot be half within its budget is an error that names output, limit and way out."""
        settings = PlanSettings(calibrate=False, budget=parse_budget(["relative_l2=1e-9"]))
        with pytest.raises(OverBudgetError, match=r"`y`: relative_l2 is .* at most 1e-09") as caught:
            export_bundle(request_for(settings=settings))

        assert "--keep-fp32" in caught.value.hint
        assert "4 of 4 float nodes in fp16; nothing was written" == caught.value.where
        assert [] == left(folder)

    def test_overflow_is_over_any_budget(self, request_for, folder):
        """An infinity where FP32 is finite is over budget, whatever the limits."""
        settings = PlanSettings(calibrate=False, budget=parse_budget(["max_abs=1e30"]))
        with pytest.raises(OverBudgetError, match="NaN or infinite where FP32 is not"):
            export_bundle(request_for(OVERFLOW, ({"x": np.float32([1024.0])},), settings=settings))
        assert [] == left(folder)

    def test_over_budget_keeps_the_old_bundle(self, request_for):
        """A forced export that fails leaves the bundle that is there."""
        old = export_bundle(request_for())
        settings = PlanSettings(calibrate=False, budget=parse_budget(["relative_l2=1e-9"]))
        with pytest.raises(OverBudgetError):
            export_bundle(request_for(settings=settings, force=True))
        assert old.manifest == open_bundle(old.path).manifest

    def test_folder_that_exists(self, request_for, folder):
        """An existing bundle is found before anything is computed."""
        export_bundle(request_for())
        with pytest.raises(BundleError, match="output folder exists"):
            export_bundle(replace(request_for(), source=folder / "not even there.onnx"))

    def test_bad_name(self, request_for, folder):
        """An invalid model name is refused."""
        with pytest.raises(BundleError, match="cannot be a model name"):
            export_bundle(replace(request_for(), output=folder / "out" / "a b"))

    @pytest.mark.parametrize(
        ("change", "error"),
        [
            ({"samples": ({"z": X},)}, SampleError),
            ({"samples": ({"x": X[:, :3]},)}, SampleError),
            ({"settings": PlanSettings(calibrate=False, budget=parse_budget(["logits:top1=1"]))}, InputError),
            ({"settings": PlanSettings(calibrate=False, precision="fp8")}, InputError),
        ],
        ids=["name", "shape", "budget", "precision"],
    )
    def test_bad_input(self, request_for, folder, change, error):
        """Nothing is written for input that does not fit."""
        with pytest.raises(error):
            export_bundle(request_for(**change))
        assert [] == left(folder)

    def test_plan_of_another_precision(self, request_for, folder):
        """A plan for BF16 cannot make an FP16 bundle."""
        with pytest.raises(InputError, match="the plan is for bf16, but fp16 was requested") as caught:
            export_bundle(request_for(plan=make_plan("bf16", [])))
        assert "--bf16" in caught.value.hint
        assert [] == left(folder)

    def test_bad_source(self, request_for, folder):
        """A file that is not a model leaves nothing either."""
        request = request_for()
        request.source.write_bytes(b"garbage")
        with pytest.raises(SourceError):
            export_bundle(request)
        assert [] == left(folder)

    def test_interrupted(self, request_for, folder):
        """Ctrl-C after the model was converted leaves nothing."""

        @contextmanager
        def impatient(name):
            yield
            if name == "verifying under the half-precision emulator":
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            export_bundle(request_for(), impatient)
        assert [] == left(folder)


class TestCheckModel:
    """The model as it stands on disk."""

    def test_invalid_model(self, tmp_path):
        """A converted model whose types disagree is reported as a defect in Demi."""
        model = apply_plan(prepared(MLP), make_plan("fp16", [])).model
        proto = ir.to_proto(model)
        proto.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
        (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
        with pytest.raises(DefectError, match="not valid") as caught:
            check_model(tmp_path / "m.onnx", "fp16", model)
        assert "defect in Demi" in caught.value.hint


STACKED = """
stacked (float[batch, 4] x) => (float[two, rows, four] y)
<int64[1] one = {1}, int64[1] first = {0}>
{
  dims = Shape(x)
  width = Gather(dims, one)
  alone = Squeeze(width, first)
  always = Cast <to = 9> (alone)
  chosen = If (always) <
    then_branch = rows () => (positive) { positive = Relu(x) },
    else_branch = batches () => (unchanged) { unchanged = Unsqueeze(x, first) }
  >
  once = Unsqueeze(chosen, first)
  y = Concat <axis = 0> (once, once)
}
"""


def test_both_models_of_a_bundle_have_its_outputs(request_for):
    """Shapes that folding reveals are written into the FP32 model, too: a server checks it against the manifest."""
    bundle = open_bundle(export_bundle(request_for(STACKED, settings=PlanSettings())).path)
    (promised,) = bundle.manifest.outputs

    assert [2, -1, 4] == promised.wire_shape
    for path in (bundle.model_path, bundle.reference_path):
        assert [2, -1, 4] == open_session(path).outputs[0].wire_shape
