"""Every reason a plan can give: a model that produces it, and its place in the documentation."""

import re
from dataclasses import dataclass, field

import numpy as np
import pytest

from demi.accuracy.budget import Budget, Limits
from demi.exporter.conversion import brought_into_range, plan_in_range
from demi.exporter.planning.costs import DeviceCosts
from demi.exporter.planning.find_plan import PlanSettings, find_plan
from demi.plan import Precision, Reason
from demi.tensors import Feeds
from tests.exporter.planning.helpers import floats, samples
from tests.models import BRANCHES, LAYER_NORM, MLP, OVERFLOW, RMS_NORM, prepared
from tests.paths import ROOT

PAGE = ROOT / "docs" / "precision.md"

FLOPS_ALONE = DeviceCosts(bandwidth=1e15, half_flops=1.0, single_flops=0.5)


@dataclass(frozen=True)
class Example:
    """A model in text, the options of its plan, and the node with the reason."""

    source: str
    feeds: Feeds
    node: str = "it"
    settings: PlanSettings = field(default_factory=PlanSettings)


def small(body, weights="", inputs="float[n] x", outputs="float[n] y", opset='"" : 20'):
    """A model in text."""
    return f"<ir_version: 8, opset_import: [{opset}]> m ({inputs}) => ({outputs}) {weights} {{ {body} }}"


X = {"x": np.float32([0.25, 1.5])}
FOURS = {"x": floats(8, 4)}
WITH_ZEROS = {"x": np.float32([[1, 1, 1, 1], [0, 0, 0, 0]])}
FLAG = {"x": np.float32([1.0]), "flag": np.array(True)}
CANCEL = small("[lift] high = Add(x, far) [drop] low = Sub(high, far) [act] y = Tanh(low)", "<float far = {4000.0}>")
QUANTIZED = small(
    "q = QuantizeLinear(x, s, z) [it] y = DequantizeLinear(q, s, z)",
    "<float s = {0.1}, uint8 z = {0}>",
    opset='"" : 13',
)
BOXES = small(
    "[it] y = RoiAlign(x, boxes, i)",
    inputs="float[1, 1, 4, 4] x, float[n, 4] boxes, int64[n] i",
    outputs="float[n, 1, 1, 1] y",
)
CLOSE = small(
    "[it] s = Mul(x, k) [pick] y = ArgMax <axis = 1, keepdims = 0> (s)",
    "<float k = {1.1}>",
    "float[n, 3] x",
    "int64[n] y",
)
SUBNORMAL = small(
    "[down] a = Mul(x, tiny) [it] b = Mul(a, a) [up] c = Mul(b, huge) [act] y = Mul(c, huge)",
    "<float tiny = {1e-4}, float huge = {60000.0}>",
)

GROWS = small(
    "[grow] big = Mul(x, hundred) [small] again = Mul(big, less) [more] y = MatMul(again, again)",
    "<float hundred = {100.0}, float less = {0.001}>",
    "float[64, 64] x",
    "float[64, 64] y",
)
FLOPS = PlanSettings(device=FLOPS_ALONE)

SOFTPLUS = small(
    "[first] h = MatMul(x, x) [exp] e = Exp(h) [one] s = Add(e, one) [log] l = Log(s) [last] y = MatMul(l, l)",
    "<float one = {1.0}>",
    "float[64, 64] x",
    "float[64, 64] y",
)

EXAMPLES = {
    Reason.SAFE: Example(MLP, FOURS, "first"),
    Reason.RESCALED: Example(GROWS, {"x": np.full((64, 64), 1024.0, np.float32)}, "grow", FLOPS),
    Reason.STABLE_FORM: Example(SOFTPLUS, {"x": np.full((64, 64), 0.5, np.float32)}, "node_Softplus_0", FLOPS),
    Reason.NO_HALF_TYPE: Example(QUANTIZED, X),
    Reason.NO_HALF_KERNEL: Example(
        BOXES,
        {"x": floats(1, 1, 4, 4), "boxes": np.float32([[0, 0, 2, 2]]), "i": np.array([0])},
    ),
    Reason.CONTROL_FLOW: Example(BRANCHES, FLAG, "choose"),
    Reason.UNKNOWN_OP: Example(
        small("[it] y = mine.Secret(x)", opset='"" : 20, "mine" : 1'), X, settings=PlanSettings(calibrate=False)
    ),
    Reason.REDUCTION: Example(
        small("[it] y = ReduceMean(x)", inputs="float[4096] x", outputs="float[1] y"),
        {"x": np.full(4096, 20.5, np.float32)},
    ),
    Reason.EXPONENTIAL: Example(small("[it] y = Exp(x)"), X, settings=PlanSettings(calibrate=False)),
    Reason.NORMALIZATION: Example(LAYER_NORM, FOURS, "divide", PlanSettings(calibrate=False)),
    Reason.INTEGER_VALUED: Example(
        small("[it] f = Cast <to = 1> (x) y = Sin(f)", inputs="int64[n] x"), {"x": np.arange(5000)}
    ),
    Reason.VANISHING_CONSTANT: Example(RMS_NORM.replace("1e-5", "1e-12"), WITH_ZEROS, "eps"),
    Reason.OVERFLOWING_CONSTANT: Example(small("[it] y = Min(x, huge)", "<float huge = {1e5}>"), X),
    Reason.OVERFLOW: Example(OVERFLOW, {"x": np.float32([1024.0])}, "grow"),
    Reason.UNDERFLOW: Example(SUBNORMAL, {"x": floats(64)}),
    Reason.GUARDED: Example(RMS_NORM.replace("1e-5", "1e-12"), WITH_ZEROS, "root"),
    Reason.ERROR_BORN: Example(CANCEL, {"x": floats(64)}, "drop"),
    Reason.FEEDS_MAGNIFIER: Example(CANCEL, {"x": floats(64)}, "lift"),
    Reason.SENSITIVE: Example(
        MLP, FOURS, "first", PlanSettings(budget=Budget(Limits(relative_l2=2e-4)), device=FLOPS_ALONE)
    ),
    Reason.CHEAPER: Example(MLP, FOURS, "act", PlanSettings(keep_fp32=("bias", "second"))),
    Reason.SELECTION: Example(CLOSE, {"x": np.float32([[0.1, 1.0001, 1.0]])}),
    Reason.RANDOM: Example(small("[it] r = RandomNormalLike(x) y = Add(x, r)"), X),
    Reason.PINNED: Example(MLP, FOURS, "first", PlanSettings(keep_fp32=("fir*",))),
}

every_reason = pytest.mark.parametrize("reason", list(Reason), ids=lambda reason: reason.value)


def decided(example):
    """The decision about an example's node."""
    model, sets = prepared(example.source), samples(example.feeds)
    if example not in (EXAMPLES[Reason.RESCALED], EXAMPLES[Reason.STABLE_FORM]):
        return find_plan(model, sets, example.settings).plan[example.node]
    ranged = brought_into_range(model, sets, example.settings)
    return plan_in_range(ranged, sets, example.settings).plan[example.node]


def pattern(evidence):
    """Evidence with its numbers left out: their last digits differ from machine to machine."""
    return re.sub(r"\d[\d.,]*(e[+-]?\d+)?", "#", evidence)


@every_reason
def test_can_be_given(reason):
    """Some model produces this reason; all but `safe`, `rescaled` and `stable-form` are reasons to stay single."""
    decision = decided(EXAMPLES[reason])

    assert reason is decision.reason
    assert (reason in (Reason.SAFE, Reason.RESCALED, Reason.STABLE_FORM)) == (decision.precision is Precision.HALF)
    assert (reason is Reason.SAFE) == (decision.evidence == "")


@every_reason
def test_is_documented(reason):
    """The page has a heading for it."""
    assert f"### `{reason.value}`\n" in PAGE.read_text()


@every_reason
def test_evidence_is_documented(reason):
    """The documentation quotes the evidence of the plan under the heading."""
    section = PAGE.read_text().split(f"### `{reason.value}`\n")[1].split("\n#")[0]
    evidence = decided(EXAMPLES[reason]).evidence

    assert pattern(evidence) in pattern(section)


def test_page_names_no_other_reason():
    """The page has no reason that no plan gives."""
    headings = re.findall(r"^### `([a-z0-9-]+)`$", PAGE.read_text(), flags=re.MULTILINE)

    assert sorted(reason.value for reason in Reason) == sorted(headings)


@pytest.mark.parametrize(
    "flag", ["--keep-fp32", "--force-half", "--plan", "--no-calibrate", "--costs", "--search-seconds", "--budget"]
)
def test_controls_are_documented(flag):
    """Every option that has a say in the plan has its place."""
    assert f"`{flag}" in PAGE.read_text()
