"""`demi diff`: the nodes that differ, the reasons, and the effect on the error."""

import numpy as np
import pytest

from demi.calibration.gate.data import data_of
from demi.calibration.gate.diff import diff
from demi.errors import BundleError, InputError
from demi.plan import Decision, Precision, Reason, make_plan, read_plan
from tests.calibration.bundles import X, edit_model, export, reseal, scale_weight


@pytest.fixture
def pair(tmp_path):
    """Return the same model twice; in the second, one node is kept in FP32."""
    first = export(tmp_path)
    plan = read_plan(first / "plan.json")
    pinned = Decision("first", "MatMul", Precision.SINGLE, Reason.PINNED, "by hand")
    other = make_plan("fp16", [pinned if each.node == "first" else each for each in plan.decisions.values()])
    return first, export(tmp_path, version=2, plan=other)


def test_the_node_and_the_error(pair):
    """One node changed precision, and the error decreased."""
    found = diff(*pair)
    (change,) = found.changes

    assert ("first", "MatMul", True) == (change.node, change.op_type, change.changed_precision)
    assert Reason.PINNED is change.now.reason
    assert (4, 3) == (found.a.half_nodes, found.b.half_nodes)
    before, after = (side.evaluation.comparison.outputs[0].relative_l2 for side in (found.a, found.b))
    assert after < before
    assert found.a.model_bytes != found.b.model_bytes


def test_the_same_plan(pair):
    """A bundle compared with itself has no change."""
    assert () == diff(pair[0], pair[0]).changes


def test_damage_with_the_same_plan(pair, tmp_path):
    """Equal plans with different errors mean that the weights differ."""
    other = export(tmp_path, version=3)
    edit_model(other, scale_weight("w1_fp16", 50))
    found = diff(pair[0], other)

    assert () == found.changes
    assert found.b.evaluation.comparison.worst.relative_l2 > 0.05 > found.a.evaluation.comparison.worst.relative_l2


def test_plan_files(pair):
    """Two plan files are compared without running a model."""
    found = diff(*(bundle / "plan.json" for bundle in pair))

    assert ["first"] == [change.node for change in found.changes]
    assert found.a.evaluation is None
    assert not found.same_samples


def test_data(pair):
    """Both bundles are evaluated on the same inputs."""
    found = diff(*pair, data_of({"x": np.vstack([X, 2 * X])}))

    assert found.same_samples
    assert 12 == found.a.evaluation.samples


def test_plan_files_on_data(pair):
    """Data is refused for two plan files, which cannot be run, but not for a plan beside a bundle."""
    plans = [bundle / "plan.json" for bundle in pair]
    with pytest.raises(InputError, match="plan files cannot be run"):
        diff(*plans, data_of({"x": X}))

    assert diff(pair[0], plans[1], data_of({"x": X})).a.evaluation


def test_not_a_bundle(pair, tmp_path):
    """A folder without a bundle, a file that is not a plan, and a bundle without a plan raise errors."""
    (tmp_path / "empty").mkdir()
    with pytest.raises(BundleError, match="not a bundle"):
        diff(pair[0], tmp_path / "empty")
    with pytest.raises(InputError, match="the plan cannot be read"):
        diff(pair[0], pair[0] / "manifest.json")
    (pair[1] / "plan.json").unlink()
    reseal(pair[1])
    with pytest.raises(BundleError, match="holds no plan"):
        diff(*pair)
