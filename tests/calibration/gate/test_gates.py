"""The gates: each shuts for what it is there for, and for nothing else."""

from dataclasses import replace

import numpy as np
import pytest

from demi.accuracy.budget import parse_budget
from demi.accuracy.compare import compare
from demi.calibration.gate.baseline import StoredMeasure
from demi.calibration.gate.baseline_comparison import BaselineComparison, MeasureChange
from demi.calibration.gate.bootstrap import Interval
from demi.calibration.gate.evaluation import Evaluation, Task
from demi.calibration.gate.gates import GATES, CheckFacts, Level, Rules, apply_gates
from demi.calibration.gate.measure import Measure
from demi.calibration.gate.plan_changes import NodeChange
from demi.plan import Decision, Precision, Reason


def evaluation(error=0.0, task=None, origin="x.npz"):
    """What half answers that is wrong by `error`."""
    want = np.array([3.0, 4.0])
    found = compare([{"y": want}], [{"y": want * (1 + error)}], parse_budget(["relative_l2=0.01"]))
    return Evaluation(origin, 1, "00", found, (), task)


GOOD = CheckFacts(evaluation(), None, 0.0, None, Rules())


def gate_results(facts):
    """Every gate that was asked, with its errors."""
    return {result.gate: result.errors for result in apply_gates(facts)}


def warnings(facts):
    """Every gate that was asked, with what it only tells."""
    return {result.gate: result.warnings for result in apply_gates(facts)}


def worsening(name="relative_l2", now=0.2, was=0.1, low=None, higher=False):
    """A measure beside its baseline, tolerance a half of what it was."""
    interval = Interval(low, low, 10, 2026) if low is not None else None
    return MeasureChange(Measure(name, now, higher_is_better=higher), StoredMeasure(name, was, "50%"), interval)


def compared(*measures, changes=(), new=()):
    """CheckFacts of a bundle beside a baseline."""
    return replace(GOOD, baseline=BaselineComparison(measures, new, changes))


MOVED = NodeChange(
    Decision("mul", "Mul", Precision.SINGLE, Reason.OVERFLOW), Decision("mul", "Mul", Precision.HALF, Reason.SAFE)
)
RENAMED = NodeChange(
    Decision("add", "Add", Precision.SINGLE, Reason.OVERFLOW), Decision("add", "Add", Precision.SINGLE, Reason.PINNED)
)


def test_gates_that_were_not_asked():
    """Without data, metric and baseline two gates are asked, and pass; an unasked gate has not passed."""
    assert {"over budget": [], "reference differs": []} == gate_results(GOOD)


class TestBudget:
    """Over budget."""

    def test_golden_sets(self):
        """The output, the number and the limit."""
        assert ["`y`: relative_l2 is 0.02, the budget is at most 0.01"] == gate_results(
            replace(GOOD, golden=evaluation(0.02))
        )["over budget"]

    def test_data(self):
        """The data is held to the same budget, and is named."""
        assert ["`y`: relative_l2 is 0.02, the budget is at most 0.01 (on x.npz)"] == gate_results(
            replace(GOOD, data=evaluation(0.02))
        )["over budget"]


class TestReference:
    """The FP32 model."""

    def test_none(self):
        """Without a reference nobody is asked."""
        assert "reference differs" not in gate_results(replace(GOOD, reference_error=None))

    @pytest.mark.parametrize("error", [0.01, np.inf, np.nan])
    def test_another_answer(self, error):
        """Another answer, or none, is an error."""
        assert 1 == len(gate_results(replace(GOOD, reference_error=error))["reference differs"])


class TestMetric:
    """A task metric's loss from FP32 to half."""

    @staticmethod
    def facts(fp32, half, limit, higher=True):
        task = Task(*(Measure("m", value, higher_is_better=higher) for value in (fp32, half)), interval=None)
        return replace(GOOD, data=evaluation(task=task), rules=Rules(max_loss=limit))

    @pytest.mark.parametrize(("limit", "fails"), [(None, False), (0.02, False), (0.005, True), (0.0, True)])
    def test_loss(self, limit, fails):
        """More than is allowed fails; with no limit the metric is only shown."""
        assert fails == bool(gate_results(self.facts(0.9, 0.89, limit))["metric lost"])

    def test_gain(self):
        """Better is never a loss."""
        assert [] == gate_results(self.facts(0.9, 0.91, 0.0))["metric lost"]

    def test_lower_is_better(self):
        """A perplexity that rises is a loss."""
        assert 1 == len(gate_results(self.facts(10.0, 11.0, 0.5, higher=False))["metric lost"])

    def test_nothing_limits_it(self):
        """A loss without a limit passes, and is told with the option that would limit it."""
        (warning,) = warnings(self.facts(0.9, 0.1, None))["metric lost"]

        assert "no limit is set for the loss of 0.8; set one with --max-loss" in warning
        assert [] == warnings(self.facts(0.9, 0.9, None))["metric lost"]
        assert [] == warnings(self.facts(0.9, 0.85, 0.1))["metric lost"]

    @pytest.mark.parametrize("half", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize("limit", [None, 0.1])
    @pytest.mark.parametrize("higher", [True, False])
    def test_no_score(self, half, limit, higher):
        """Half without a finite score fails, whatever the limit."""
        assert 1 == len(gate_results(self.facts(0.9, half, limit, higher))["metric lost"])


class TestBaseline:
    """Beside a baseline."""

    def test_worse_for_sure(self):
        """The numbers, the interval and its seed, and what is tolerated."""
        (error,) = gate_results(compared(worsening(low=0.08)))["worse than the baseline"]

        assert "relative_l2 is 0.2, the baseline 0.1: worse by 0.1 (at least 0.08: " in error
        assert "seed 2026), at most 0.05 is tolerated" in error

    def test_worse_by_chance(self):
        """As much worse, but not for sure: it passes."""
        assert [] == gate_results(compared(worsening(low=0.01)))["worse than the baseline"]

    def test_within_tolerance(self):
        """Worse for sure, by less than is tolerated."""
        assert [] == gate_results(compared(worsening(now=0.12, low=0.02)))["worse than the baseline"]

    @pytest.mark.parametrize("now", [0.2, np.inf, np.nan])
    def test_without_samples(self, now):
        """One number for all is compared as it is; no number is worse than any."""
        assert 1 == len(gate_results(compared(worsening(now=now)))["worse than the baseline"])

    def test_fewer_hits(self):
        """Where higher is better, lower is worse."""
        assert 1 == len(gate_results(compared(worsening("top1", 0.4, 0.9, higher=True)))["worse than the baseline"])
        assert 0 == len(gate_results(compared(worsening("top1", 0.9, 0.4, higher=True)))["worse than the baseline"])

    @pytest.mark.parametrize("name", ["model_bytes", "fp32_nodes"])
    def test_growth(self, name):
        """Size and FP32 share have a gate of their own."""
        found = gate_results(compared(worsening(name)))

        assert ([], 1) == (found["worse than the baseline"], len(found["grown"]))

    def test_a_measure_that_is_new(self):
        """What the baseline does not hold is a warning: it was compared with nothing."""
        (result,) = (
            v for v in apply_gates(compared(new=(Measure("top1", 1.0),))) if v.gate == "worse than the baseline"
        )

        assert result
        assert ["top1 is not in the baseline, so it was not compared"] == result.warnings


class TestPlan:
    """Nodes that changed precision."""

    @pytest.mark.parametrize(("level", "errors", "warnings"), [(Level.WARNING, 0, 1), (Level.ERROR, 1, 0)])
    def test_by_choice(self, level, errors, warnings):
        """A warning or an error; another reason for the same side is neither."""
        facts = replace(compared(changes=(RENAMED, MOVED)), rules=Rules(plan_changes=level))
        (result,) = (each for each in apply_gates(facts) if each.gate == "plan changed")

        assert (errors, warnings) == (len(result.errors), len(result.warnings))

    def test_ignored(self):
        """Or nobody is asked."""
        assert "plan changed" not in gate_results(replace(compared(changes=(MOVED,)), rules=Rules(plan_changes=None)))

    def test_other_failures_name_the_first_change(self):
        """Where an answer is worse, the first node whose reason changed is where to look."""
        facts = replace(compared(changes=(RENAMED, MOVED)), golden=evaluation(0.02))

        assert gate_results(facts)["over budget"][0].endswith(
            "; the first node whose reason changed: `add`: single (overflow) -> single (pinned)"
        )


def test_every_gate_can_shut():
    """No gate passes everything: each has its error above, and here they all have one at once."""
    task = Task(Measure("m", 0.9, higher_is_better=True), Measure("m", 0.1, higher_is_better=True), None)
    facts = CheckFacts(
        golden=evaluation(0.02),
        data=evaluation(task=task),
        reference_error=1.0,
        baseline=BaselineComparison((worsening(), worsening("model_bytes")), (), (MOVED,)),
        rules=Rules(0.0, Level.ERROR),
    )

    assert set(GATES) == {gate for gate, errors in gate_results(facts).items() if errors}
