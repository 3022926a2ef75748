"""Detectors from export to the gate: the network is in half, and boxes that change are named.

FP32 would stay everywhere if every close score were to be kept from turning: among hundreds of boxes some always are.
"""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from demi.accuracy.budget import parse_budget
from demi.accuracy.compare import compare
from demi.bundles.bundle import open_bundle
from demi.calibration.emulation.widen import widen
from demi.calibration.explain.explanation import explain_bundle
from demi.calibration.gate.baseline import Baseline
from demi.calibration.gate.check import CheckOptions, check_bundle
from demi.calibration.gate.data import Data
from demi.calibration.gate.reports.markdown import markdown
from demi.calibration.sessions import session_for
from demi.exporter import convert
from demi.exporter.api import Converted
from demi.exporter.passes.prepare import prepare
from demi.exporter.pipeline import export_bundle
from demi.exporter.planning.find_plan import PlanSettings
from demi.exporter.planning.judged_outputs import budget_for
from demi.exporter.request import ExportRequest
from demi.exporter.sources.options import SourceOptions
from tests.calibration.bundles import edit_model

from .nets import DETECTORS

every_detector = pytest.mark.parametrize("name", list(DETECTORS))


@functools.cache
def converted(name: str) -> Converted:
    """Return the conversion of a detector with its calibration images."""
    return convert(DETECTORS[name]().model, DETECTORS[name]().calibration)


def held_out(name: str, model: ir.Model):
    """Return a model's outputs on held-out images."""
    with session_for(model) as session:
        return [session.run(feeds) for feeds in DETECTORS[name]().evaluation]


@every_detector
def test_the_network_is_half(name):
    """Nearly all FLOPs are in half; the decoder and the selection of boxes are in FP32, with a reason."""
    result = converted(name)
    kept = {each.op_type: each.reason.value for each in result.plan.decisions.values() if not each.is_half}

    assert result.planned.fp32_share.flops < 0.05
    assert "selection" == kept["Sigmoid" if name.startswith("yolo") else "Softmax"]


@every_detector
def test_boxes_stay_on_other_images(name):
    """On held-out images the boxes are within the budget, matched by overlap and class."""
    source = ir.from_proto(DETECTORS[name]().model)
    want, got = held_out(name, source), held_out(name, widen(ir.from_proto(converted(name).model)))
    comparison = compare(want, got, budget_for(prepare(source), want, parse_budget([])))

    assert comparison
    assert sum(diff.found or 0 for diff in comparison.outputs) > 100


@pytest.fixture(scope="module")
def bundle_of(tmp_path_factory):
    """Return the bundle of a detector, exported for a single test that changes it."""

    def make(name: str) -> Path:
        folder = tmp_path_factory.mktemp(name)
        detector = DETECTORS[name]()
        source = folder / f"{name}.onnx"
        source.write_bytes(detector.model.SerializeToString())
        request = ExportRequest(
            source,
            folder / name,
            settings=PlanSettings(),
            plan=converted(name).plan,
            options=SourceOptions(samples=tuple(detector.calibration)),
            report=True,
        )
        return export_bundle(request).path

    return make


@pytest.fixture(scope="module")
def bundle(bundle_of):
    """Return the bundle of a detector with a NonMaxSuppression in its graph."""
    return bundle_of("yolo_nms")


def raise_threshold(model: ir.Model) -> None:
    """Return only boxes above a score of 0.6."""
    (node,) = (node for node in model.graph if node.op_type == "NonMaxSuppression")
    node.inputs[4].const_value = ir.tensor(np.float32([0.6]), name=node.inputs[4].name)


def swap_classes(model: ir.Model) -> None:
    """Swap classes 1 and 2 in the layers that compute the classes."""
    for name, value in model.graph.initializers.items():
        numbers = value.const_value.numpy()
        readers = {use.node.op_type for use in value.uses()}
        if "Conv" in readers and numbers.shape[0] == 4:
            value.const_value = ir.tensor(numbers[[0, 2, 1, 3]], name=name)


class TestGate:
    """`demi check` on a bundle of a detector."""

    def test_it_passes(self, bundle):
        """The bundle's budget includes its detector; the report lists the changed boxes."""
        check = check_bundle(bundle)

        assert check
        assert check.comparison.outputs[0].found > 100
        assert "matched by overlap and class" in (bundle / "report.html").read_text()

    def test_missing_boxes(self, bundle_of):
        """Boxes that half does not return fail the gate, each with its class and its score."""
        made = bundle_of("yolo_nms")
        edit_model(made, raise_threshold)
        check = check_bundle(made)
        lost = [change for change in check.comparison.outputs[0].changes if change.kind == "vanishes"]

        assert not check
        assert all(0.25 <= change.score <= 0.61 for change in lost if not change.marginal)
        assert f"class {lost[0].label} vanishes at score {lost[0].score:.4g}" in check.failures[0]
        assert "vanishes at score" in markdown([check])

    def test_swapped_classes(self, bundle_of):
        """A box of another class is reported as a swap, with both classes and scores."""
        made = bundle_of("yolo_nms")
        edit_model(made, swap_classes)
        check = check_bundle(made)
        kinds = {(each.kind, each.label, each.other_label) for each in check.comparison.outputs[0].changes}

        assert not check
        assert {("swaps", 1, 2), ("swaps", 2, 1)} <= kinds
        assert any("becomes class" in line for line in check.failures)

    def test_boxes_with_another_budget(self, bundle_of):
        """With a budget from the command line boxes are still matched, and more of them may be allowed to change."""
        made = bundle_of("yolo_nms")
        edit_model(made, raise_threshold)

        assert not check_bundle(made, parse_budget(["relative_l2=0.5"]))
        assert check_bundle(made, parse_budget(["boxes=0.9", "relative_l2=0.5"]))

    def test_boxes_have_a_baseline(self, bundle, bundle_of):
        """The share of changed boxes is a measure: a larger one than in the baseline is worse."""
        data = Data(tuple(DETECTORS["yolo_nms"]().evaluation), None, "others")
        entry = check_bundle(bundle, options=CheckOptions(data=data)).baseline_entry({}, None)
        worse = bundle_of("yolo_nms")
        edit_model(worse, raise_threshold)
        options = CheckOptions(
            budget=parse_budget(["boxes=1,relative_l2=1"]),
            data=data,
            baseline=Baseline(Path("b.json"), {"yolo_nms": entry}),
        )

        assert "boxes" in {measure.name for measure in entry.measures}
        assert any(line.startswith("boxes of `detections`") for line in check_bundle(worse, options=options).failures)

    def test_end_to_end_detector(self, bundle_of):
        """A detector with NMS-free ranking is judged in the same way."""
        found = check_bundle(bundle_of("yolo_end_to_end")).comparison.outputs[0]

        assert found
        assert found.found > 100

    def test_explained(self, bundle_of):
        """For a missing box the explanation names the node that loses it."""
        made = bundle_of("yolo_nms")
        edit_model(made, raise_threshold)
        explanation = explain_bundle(open_bundle(made))

        assert "NonMaxSuppression" == explanation.culprits[0].op_type
        assert "vanishes at score" in explanation.comparison.boxes()[0]


def test_bf16_plan_is_found_by_the_cut():
    """In BF16 the decoder magnifies ordinary rounding: no node is blamed, and the plan is found in a few trials."""
    detector = DETECTORS["yolo_end_to_end"]()
    result = convert(detector.model, detector.calibration, precision="bf16")
    reasons = {each.reason.value for each in result.plan.decisions.values() if not each.is_half}

    assert result.comparison
    assert "feeds-magnifier" not in reasons
    assert result.planned.fp32_share.flops < 0.2
