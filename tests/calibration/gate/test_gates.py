"""The gates: each fails for its own reason and for no other."""

from dataclasses import replace

import numpy as np
import pytest

from demi.accuracy.budget import parse_budget
from demi.accuracy.compare import compare
from demi.accuracy.token_agreement import Step, token_agreement
from demi.calibration.gate.baseline import StoredMeasure
from demi.calibration.gate.baseline_comparison import BaselineComparison, MeasureChange
from demi.calibration.gate.bootstrap import Interval
from demi.calibration.gate.evaluation import Evaluation, Task
from demi.calibration.gate.gates import GATES, CheckFacts, Level, Rules, TextFacts, apply_gates
from demi.calibration.gate.measure import Measure
from demi.plan import Decision, Precision, Reason
from demi.plan_changes import NodeChange


def evaluation(error=0.0, task=None, origin="x.npz"):
    """Return an evaluation of half outputs with this relative error."""
    want = np.array([3.0, 4.0])
    found = compare([{"y": want}], [{"y": want * (1 + error)}], parse_budget(["relative_l2=0.01"]))
    return Evaluation(origin, 1, "00", found, (), task)


GOOD = CheckFacts(evaluation(), None, 0.0, None, Rules())


def gate_results(facts):
    """Return every gate that was applied, with its errors."""
    return {result.gate: result.errors for result in apply_gates(facts)}


def warnings(facts):
    """Return every gate that was applied, with its warnings."""
    return {result.gate: result.warnings for result in apply_gates(facts)}


def worsening(name="relative_l2", now=0.2, was=0.1, low=None, higher=False):
    """Return a measure and its baseline, with a tolerance of half the old value."""
    interval = Interval(low, low, 10, 2026) if low is not None else None
    return MeasureChange(Measure(name, now, higher_is_better=higher), StoredMeasure(name, was, "50%"), interval)


def compared(*measures, changes=(), new=()):
    """Return the facts of a bundle that is compared with a baseline."""
    return replace(GOOD, baseline=BaselineComparison(measures, new, changes))


MOVED = NodeChange(
    Decision("mul", "Mul", Precision.SINGLE, Reason.OVERFLOW), Decision("mul", "Mul", Precision.HALF, Reason.SAFE)
)
RENAMED = NodeChange(
    Decision("add", "Add", Precision.SINGLE, Reason.OVERFLOW), Decision("add", "Add", Precision.SINGLE, Reason.PINNED)
)


def test_gates_without_input_are_not_applied():
    """Without data, metric and baseline, two gates are applied and pass; the others are not listed as passed."""
    assert {"over budget": [], "reference differs": []} == gate_results(GOOD)


class TestBudget:
    """The gate on the accuracy budget."""

    def test_golden_sets(self):
        """The error names the output, the number and the limit."""
        assert ["`y`: relative_l2 is 0.02, the budget is at most 0.01"] == gate_results(
            replace(GOOD, golden=evaluation(0.02))
        )["over budget"]

    def test_data(self):
        """The data has the same budget, and the error names it."""
        assert ["`y`: relative_l2 is 0.02, the budget is at most 0.01 (on x.npz)"] == gate_results(
            replace(GOOD, data=evaluation(0.02))
        )["over budget"]


class TestReference:
    """The gate on the FP32 reference."""

    def test_no_reference(self):
        """Without a reference the gate is not applied."""
        assert "reference differs" not in gate_results(replace(GOOD, reference_error=None))

    @pytest.mark.parametrize("error", [0.01, np.inf, np.nan])
    def test_other_outputs(self, error):
        """A reference with other outputs, or none, is an error."""
        assert 1 == len(gate_results(replace(GOOD, reference_error=error))["reference differs"])


class TestMetric:
    """The gate on a task metric's loss from FP32 to half."""

    @staticmethod
    def facts(fp32, half, limit, higher=True):
        task = Task(*(Measure("m", value, higher_is_better=higher) for value in (fp32, half)), interval=None)
        return replace(GOOD, data=evaluation(task=task), rules=Rules(max_loss=limit))

    @pytest.mark.parametrize(("limit", "fails"), [(None, False), (0.02, False), (0.005, True), (0.0, True)])
    def test_loss(self, limit, fails):
        """A loss beyond the limit fails; without a limit the metric is only shown."""
        assert fails == bool(gate_results(self.facts(0.9, 0.89, limit))["metric lost"])

    def test_gain(self):
        """Better is never a loss."""
        assert [] == gate_results(self.facts(0.9, 0.91, 0.0))["metric lost"]

    def test_lower_is_better(self):
        """A perplexity that increases is a loss."""
        assert 1 == len(gate_results(self.facts(10.0, 11.0, 0.5, higher=False))["metric lost"])

    def test_loss_without_a_limit(self):
        """A loss without a limit passes, with a warning that names the option for a limit."""
        (warning,) = warnings(self.facts(0.9, 0.1, None))["metric lost"]

        assert "no limit is set for the loss of 0.8; set one with --max-loss" in warning
        assert [] == warnings(self.facts(0.9, 0.9, None))["metric lost"]
        assert [] == warnings(self.facts(0.9, 0.85, 0.1))["metric lost"]

    @pytest.mark.parametrize("half", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize("limit", [None, 0.1])
    @pytest.mark.parametrize("higher", [True, False])
    def test_no_score(self, half, limit, higher):
        """A half model without a finite score fails at any limit."""
        assert 1 == len(gate_results(self.facts(0.9, half, limit, higher))["metric lost"])


class TestBaseline:
    """The gate on a baseline."""

    def test_significantly_worse(self):
        """The error has the numbers, the interval with its seed, and the tolerance."""
        (error,) = gate_results(compared(worsening(low=0.08)))["worse than the baseline"]

        assert "relative_l2 is 0.2, the baseline 0.1: worse by 0.1 (at least 0.08: " in error
        assert "seed 2026), at most 0.05 is tolerated" in error

    def test_insignificantly_worse(self):
        """A difference of the same size that is not significant passes."""
        assert [] == gate_results(compared(worsening(low=0.01)))["worse than the baseline"]

    def test_within_tolerance(self):
        """A significant difference below the tolerance passes."""
        assert [] == gate_results(compared(worsening(now=0.12, low=0.02)))["worse than the baseline"]

    @pytest.mark.parametrize("now", [0.2, np.inf, np.nan])
    def test_without_samples(self, now):
        """A single number without samples is compared directly; NaN is worse than any number."""
        assert 1 == len(gate_results(compared(worsening(now=now)))["worse than the baseline"])

    def test_fewer_hits(self):
        """For a metric that should be high, a lower value is worse."""
        assert 1 == len(gate_results(compared(worsening("top1", 0.4, 0.9, higher=True)))["worse than the baseline"])
        assert 0 == len(gate_results(compared(worsening("top1", 0.9, 0.4, higher=True)))["worse than the baseline"])

    @pytest.mark.parametrize("name", ["model_bytes", "fp32_nodes"])
    def test_growth(self, name):
        """Size and FP32 share have a gate of their own."""
        found = gate_results(compared(worsening(name)))

        assert ([], 1) == (found["worse than the baseline"], len(found["grown"]))

    def test_new_measure(self):
        """A measure that the baseline does not have is a warning, since it was not compared."""
        (result,) = (
            v for v in apply_gates(compared(new=(Measure("top1", 1.0),))) if v.gate == "worse than the baseline"
        )

        assert result
        assert ["top1 is not in the baseline, so it was not compared"] == result.warnings


class TestPlan:
    """Nodes that changed precision."""

    @pytest.mark.parametrize(("level", "errors", "warnings"), [(Level.WARNING, 0, 1), (Level.ERROR, 1, 0)])
    def test_plan_change_is_a_warning_or_an_error(self, level, errors, warnings):
        """A changed precision is a warning or an error; another reason for the same precision is neither."""
        facts = replace(compared(changes=(RENAMED, MOVED)), rules=Rules(plan_changes=level))
        (result,) = (each for each in apply_gates(facts) if each.gate == "plan changed")

        assert (errors, warnings) == (len(result.errors), len(result.warnings))

    def test_ignored(self):
        """With `ignore` the gate is not applied."""
        assert "plan changed" not in gate_results(replace(compared(changes=(MOVED,)), rules=Rules(plan_changes=None)))

    def test_other_failures_name_the_first_change(self):
        """If outputs are worse, the first node whose reason changed is named."""
        facts = replace(compared(changes=(RENAMED, MOVED)), golden=evaluation(0.02))

        assert gate_results(facts)["over budget"][0].endswith(
            "; the first node whose reason changed: `add`: FP32 (overflow) -> FP32 (pinned)"
        )


def test_every_gate_can_fail():
    """Every gate can fail: here all of them do at once."""
    task = Task(Measure("m", 0.9, higher_is_better=True), Measure("m", 0.1, higher_is_better=True), None)
    facts = CheckFacts(
        golden=replace(evaluation(0.02), tokens=token_agreement([[Step(False, 1.0)]])),
        data=evaluation(task=task),
        reference_error=1.0,
        baseline=BaselineComparison((worsening(), worsening("model_bytes")), (), (MOVED,)),
        rules=Rules(0.0, Level.ERROR),
        rescaling=("`h` is scaled",),
        texts=TextFacts(least=0.99, at_export=None),
    )

    assert set(GATES) == {gate for gate, errors in gate_results(facts).items() if errors}
