"""`demi check` on the user's data and against a baseline: regressions fail, and other changes pass."""

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest

from demi.accuracy.compare import relative_l2
from demi.bundles.bundle import open_bundle
from demi.calibration.gate.baseline import read_baseline, write_baseline
from demi.calibration.gate.check import (
    CheckOptions,
    UncheckedBundle,
    check_bundle,
    check_bundles,
    exit_code,
)
from demi.calibration.gate.data import data_of
from demi.calibration.gate.evaluation import error_rows
from demi.calibration.gate.gates import Level, Rules
from demi.cli.console import Console
from demi.errors import DigestError, InputError, SampleError
from demi.exporter.passes.lower import apply_plan
from demi.exporter.pipeline import export_bundle
from demi.exporter.planning.find_plan import PlanSettings
from demi.exporter.request import ExportRequest
from demi.exporter.sources.options import SourceOptions
from demi.plan import Decision, Precision, Reason, make_plan, read_plan
from demi.runtime.onnxruntime.session import open_session
from tests.calibration.bundles import edit_model, export, reseal, scale_weight
from tests.models import MLP, OVERFLOW, RMS_NORM, parse, text

ROWS = np.random.default_rng(3).standard_normal((70, 4)).astype(np.float32)


@pytest.fixture
def bundle(tmp_path):
    """Return an intact bundle of two layers."""
    return export(tmp_path)


def labelled(bundle, wrong=()):
    """Return the rows with FP32's answers as labels; labels in `wrong` differ from them."""
    answers = open_session(bundle / "reference.onnx").run({"x": ROWS})["y"].argmax(axis=1)
    answers[list(wrong)] ^= 1
    return data_of({"x": ROWS, "labels": answers}, "labels")


def baseline_of(bundle, path, options=None):
    """Return a baseline file of an unchanged bundle."""
    check = check_bundle(bundle, options=options)
    write_baseline(path, {check.name: check.baseline_entry({}, None)})
    return read_baseline(path)


def failed(check):
    """Return the failed gates."""
    return [result.gate for result in check.gate_results if not result]


class TestData:
    """The user's own samples."""

    def test_sets_without_samples(self, bundle):
        """Sets of no rows are skipped; if all sets are empty, there is nothing to check, which is an error."""
        none, some = data_of({"x": ROWS[:0]}), data_of({"x": ROWS[:5]})

        check = check_bundle(bundle, options=CheckOptions(data=replace(some, sets=(*none.sets, *some.sets))))

        assert 5 == check.facts.data.samples
        with pytest.raises(SampleError, match="there are no samples"):
            check_bundle(bundle, options=CheckOptions(data=none))

    def test_errors_are_those_of_one_run(self, bundle):
        """Relative L2 over batches equals that of one run, and every sample is counted."""
        found = check_bundle(bundle, options=CheckOptions(data=data_of({"x": ROWS}))).facts.data

        assert 70 == found.samples == len(found.errors[0].rows)
        assert found.comparison.outputs[0].relative_l2 == pytest.approx(found.errors[0].value)

    def test_labels(self, bundle):
        """Both models are scored; FP32 is correct except for the labels that were made wrong."""
        options = CheckOptions(data=labelled(bundle, wrong=range(7)), metric="top1")
        task = check_bundle(bundle, options=options).facts.data.task

        assert 0.9 == pytest.approx(task.fp32.value)
        assert task.interval.low <= task.loss <= task.interval.high

    def test_a_lost_class_fails(self, bundle):
        """A last layer that confuses classes lowers the score and fails, even if its error is within the budget."""
        edit_model(bundle, scale_weight("w2_fp16", -1))
        options = CheckOptions(data=labelled(bundle), metric="top1", rules=Rules(max_loss=0.01))
        check = check_bundle(bundle, options=options)

        assert "metric lost" in failed(check)
        assert any("top1 of `y`: " in line and "at most 0.01 is allowed" in line for line in check.failures)

    def test_classes_must_agree(self, tmp_path):
        """For a model that returns classes, agreement replaces the error, and a low one fails."""
        source = MLP.replace("(float[batch, 2] y)", "(int64[batch, 1] y)").replace(
            "y = MatMul(active, w2)", "logits = MatMul(active, w2) [pick] y = ArgMax <axis = 1> (logits)"
        )
        made = export(tmp_path, source)
        check = check_bundle(made, options=CheckOptions(data=data_of({"x": ROWS})))

        assert check
        assert [("agree", 1.0)] == [(each.name, each.value) for each in check.facts.data.errors]
        edit_model(made, scale_weight("w2_fp16", -1))
        assert ["over budget"] == failed(check_bundle(made, options=CheckOptions(data=data_of({"x": ROWS}))))

    def test_without_a_reference(self, tmp_path):
        """Without a reference data cannot be evaluated, which is an error."""
        with pytest.raises(InputError, match="holds no FP32 reference"):
            check_bundle(export(tmp_path, reference=False), options=CheckOptions(data=data_of({"x": ROWS})))

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (lambda: CheckOptions(metric="top1"), "has no data to run on"),
            (
                lambda: CheckOptions(data=data_of({"x": ROWS, "l": ROWS[:, 0]}, "l")),
                "labels without a metric have no effect",
            ),
            (lambda: CheckOptions(rules=Rules(max_loss=0.1)), "a limit for the loss needs a metric"),
        ],
    )
    def test_option_without_effect(self, options, message):
        """An option without effect raises an error."""
        with pytest.raises(InputError, match=message):
            options()

    def test_a_metric_that_is_nan(self, bundle):
        """If no label counts, FP32 has no score, which is an input error and not a failed check."""
        data = data_of({"x": ROWS, "labels": np.full(70, -1)}, "labels")
        with pytest.raises(InputError, match="`top1` is NaN for FP32"):
            check_bundle(bundle, options=CheckOptions(data=data, metric="top1"))


class TestErrorRows:
    """The row of one sample."""

    def test_squared_error_and_signal(self):
        """A row is the squared error and the squared signal."""
        want, got = np.float32([[3, 4], [0, 1]]), np.float32([[3, 5], [0, 1]])

        assert [[1, 25], [0, 1]] == error_rows(want, got, 2).tolist()
        assert relative_l2(want, got) == pytest.approx(np.sqrt(1 / 26))

    def test_non_finite(self):
        """A row is infinite if only one side is finite; equal infinities on both sides are not an error."""
        want, got = np.float32([[np.inf, 1], [1, 1], [np.nan, 0]]), np.float32([[np.inf, 1], [np.nan, 1], [np.nan, 0]])

        assert [0, np.inf, 0] == error_rows(want, got, 3)[:, 0].tolist()

    def test_another_shape(self):
        """An output of another shape has an infinite error in every sample."""
        assert [[np.inf, 0]] * 2 == error_rows(np.zeros((2, 3)), np.zeros((2, 4)), 2).tolist()


class TestBaseline:
    """Comparison with a baseline."""

    def test_nothing_changed(self, bundle, tmp_path):
        """An unchanged bundle passes, on the golden sets and on data with a metric."""
        for options in (CheckOptions(), CheckOptions(data=labelled(bundle), metric="top1")):
            baseline = baseline_of(bundle, tmp_path / "b.json", options)
            check = check_bundle(bundle, options=replace(options, baseline=baseline))

            assert check, check.failures
            assert all(worsening.worse_by == 0 for worsening in check.facts.baseline.measures)

    def test_one_weight_perturbed(self, bundle, tmp_path):
        """A slightly perturbed weight is within the budget, but significantly worse than the baseline."""
        options = CheckOptions(data=data_of({"x": ROWS}))
        baseline = baseline_of(bundle, tmp_path / "b.json", options)
        edit_model(bundle, scale_weight("w1_fp16", 1.02, position=9))
        check = check_bundle(bundle, options=replace(options, baseline=baseline))

        assert check.facts.data.comparison
        assert ["worse than the baseline"] == failed(check)
        assert check.failures[0].startswith("relative_l2 of `y` is ")

    def test_a_larger_tolerance(self, bundle, tmp_path):
        """The tolerance in the file applies."""
        options = CheckOptions(data=data_of({"x": ROWS}))
        baseline = baseline_of(bundle, tmp_path / "b.json", options)
        edit_model(bundle, scale_weight("w1_fp16", 1.02, position=9))
        (tmp_path / "b.json").write_text((tmp_path / "b.json").read_text().replace('"10%"', "0.009"))

        assert not check_bundle(bundle, options=replace(options, baseline=baseline))
        assert check_bundle(bundle, options=replace(options, baseline=read_baseline(tmp_path / "b.json")))

    def test_growth(self, bundle, tmp_path):
        """A model that became larger is reported."""
        baseline = baseline_of(bundle, tmp_path / "b.json")
        edit_model(bundle, lambda model: model.metadata_props.update(more="x" * 500))

        assert ["grown"] == failed(check_bundle(bundle, options=CheckOptions(baseline=baseline)))

    def test_other_samples(self, bundle, tmp_path):
        """Rows of other samples cannot be compared in pairs, which is an error."""
        baseline = baseline_of(bundle, tmp_path / "b.json")
        with pytest.raises(InputError, match="was measured on other samples: 6 from the golden sets"):
            check_bundle(bundle, options=CheckOptions(data=data_of({"x": ROWS}), baseline=baseline))

    def test_measure_that_is_no_longer_requested(self, bundle, tmp_path):
        """A baseline's metric that is not requested raises an error, because it would pass unseen."""
        options = CheckOptions(data=labelled(bundle), metric="top1")
        baseline = baseline_of(bundle, tmp_path / "b.json", options)
        stored = baseline.models["tiny"]
        stored.digest = check_bundle(bundle).measured_on.digest
        with pytest.raises(InputError, match="holds top1 of `y`, which is not measured now"):
            check_bundle(bundle, options=CheckOptions(baseline=baseline))


def measured(tmp_path, source, **arrays):
    """Return a bundle whose plan was measured on these inputs."""
    (tmp_path / "tiny.onnx").write_bytes(text(parse(source)))
    request = ExportRequest(
        tmp_path / "tiny.onnx",
        tmp_path / "tiny",
        settings=PlanSettings(rescale=False),
        options=SourceOptions(samples=(arrays,)),
    )
    return export_bundle(request).path


class TestDamaged:
    """Bundles that were exported wrong, with valid digests."""

    def test_an_overflowing_node_forced_to_half(self, tmp_path):
        """With an edited plan the output is infinite, and the node is named with its original reason."""
        bundle = measured(tmp_path, OVERFLOW, x=np.float32([1024.0, 7.0]))
        baseline = baseline_of(bundle, tmp_path / "b.json")
        plan = read_plan(bundle / "plan.json")
        forced = [Decision(each.node, each.op_type, Precision.HALF, Reason.SAFE) for each in plan.decisions.values()]
        edited = make_plan("fp16", forced)
        ir.save(apply_plan(ir.load(bundle / "reference.onnx"), edited).model, bundle / "model.onnx")
        (bundle / "plan.json").write_bytes(edited.to_json())
        reseal(bundle)
        rules = Rules(plan_changes=Level.ERROR)
        check = check_bundle(bundle, options=CheckOptions(baseline=baseline, rules=rules))

        assert {"over budget", "plan changed"} <= set(failed(check))
        assert "NaN or infinite where FP32 is not" in check.failures[0]
        assert check.failures[0].endswith(
            "; the first node whose reason changed: `grow`: FP32 (overflow) -> half (safe)"
        )

    def test_flushed_epsilon(self, tmp_path):
        """Golden sets without a row of zeros miss a flushed epsilon; data with one finds it."""
        bundle = measured(tmp_path, RMS_NORM, x=ROWS)
        data = CheckOptions(data=data_of({"x": np.vstack([ROWS, np.zeros((1, 4), np.float32)])}))
        assert check_bundle(bundle, options=data)

        def flush(model):
            (name,) = (name for name in model.graph.initializers if name.startswith("eps"))
            value = model.graph.initializers[name]
            value.const_value = ir.Tensor(value.const_value.numpy() * 0, name=name)

        edit_model(bundle, flush)
        assert check_bundle(bundle)
        check = check_bundle(bundle, options=data)
        assert ["over budget"] == failed(check)
        assert "4 of 284 elements are NaN or infinite where FP32 is not (on arrays in memory)" in check.failures[0]


class TestSeveral:
    """Several bundles in one check."""

    def test_a_damaged_bundle_does_not_stop_the_others(self, bundle, tmp_path):
        """All bundles are checked, and the worst result gives the exit code."""
        damaged, over = export(tmp_path, version=2), export(tmp_path, version=3)
        (damaged / "model.onnx").write_bytes(b"x")
        edit_model(over, scale_weight("w1_fp16", 50))
        outcomes = check_bundles([damaged, over, bundle], CheckOptions(), Console().step)

        assert [False, False, True] == [bool(each) for each in outcomes]
        assert isinstance(outcomes[0], UncheckedBundle)
        assert isinstance(outcomes[0].error, DigestError)
        assert [2, 1, 0] == [exit_code([each]) for each in outcomes]
        assert (2, 1) == (exit_code(outcomes), exit_code(outcomes[1:]))


def test_the_bundle_is_not_changed(bundle):
    """A check does not write into a bundle."""
    before = {path: path.read_bytes() for path in bundle.iterdir()}
    check_bundle(bundle, options=CheckOptions(data=data_of({"x": ROWS})))

    assert before == {path: path.read_bytes() for path in bundle.iterdir()}
    assert open_bundle(bundle)
