"""The hard constraints: models on which each rule applies, and models on which it does not."""

import itertools

import numpy as np
import pytest

from demi.errors import ConversionError
from demi.exporter.operators.tables import ALWAYS_SINGLE
from demi.exporter.planning.constraints import VALUE_RULES, underflows
from demi.float16 import BF16, FP16
from demi.plan import Reason
from tests.exporter.planning.helpers import facts, reasons, verdicts
from tests.models import BRANCHES, MLP, RMS_NORM, node

ONE = "one (float[n] x) => (float[n] y) { [it] y = Neg(x) }"


ROW = {"x": np.ones((1, 4), np.float32)}


def x(*values):
    """One set of inputs."""
    return {"x": np.float32(values)}


def test_ordinary_models_have_no_constraints():
    """An MLP on ordinary numbers may be half throughout."""
    assert {} == reasons(MLP, {"x": np.ones((2, 4), np.float32)})


@pytest.mark.parametrize("rule", VALUE_RULES, ids=lambda rule: rule.__name__)
def test_every_rule_says_what_it_looks_for(rule):
    """A rule's docstring is its description."""
    assert len(rule.__doc__) > 20


class TestOverflow:
    """Tensors near or beyond the largest half."""

    def test_beyond(self):
        """The producer and the readers of a tensor beyond half stay in FP32, with the number as evidence."""
        source = "m (float[n] x) => (float[n] y) <float k = {100.0}> { [make] big = Mul(x, k) [read] small = Div(big, k) [after] y = Neg(small) }"
        found = verdicts(source, x(819.2))

        assert {"make": Reason.OVERFLOW, "read": Reason.OVERFLOW} == {name: why for name, (why, _) in found.items()}
        assert "max 81,920 on `big`" == found["make"][1]

    @pytest.mark.parametrize(("largest", "fires"), [(43_000.0, False), (44_000.0, True), (-44_000.0, True)])
    def test_margin(self, largest, fires):
        """Other inputs may be half as large again as the samples."""
        found = verdicts(ONE, x(0.5, largest))

        assert fires == ("it" in found)
        if fires:
            assert "max 44,000 on `x` (margin 1.5)" == found["it"][1]

    @pytest.mark.parametrize(
        ("body", "below", "beyond"),
        [
            ("y = Exp(x)", 8.2, 8.4),
            ("y = Mul(x, x)", 127.0, 129.0),
            ("y = Pow(x, two)", 127.0, 129.0),
            ("y = Div(two, x)", 1.3e-4, 1.1e-4),
            ("y = Reciprocal(x)", 6.5e-5, 5.5e-5),
            ("y = Mul(x, two)", 21_000.0, 22_000.0),
        ],
    )
    def test_amplifying_operators_have_a_wider_margin(self, body, below, beyond):
        """Exponentials, powers and quotients, which grow faster than their arguments, have a wider margin than a product."""
        source = f"m (float[n] x) => (float[n] y) <float two = {{2.0}}> {{ [it] {body} }}"

        assert {} == reasons(source, x(below))
        assert {"it": Reason.OVERFLOW} == reasons(source, x(beyond))

    def test_infinities_that_fp32_has_are_no_overflow(self):
        """An infinity of FP32 is infinite in half as well, and not an overflow."""
        assert {} == reasons(ONE, x(-np.inf, 1.0))

    def test_bf16_has_the_range_of_fp32(self):
        """1e30 is an ordinary number in BF16."""
        assert {} == reasons(ONE, x(1e30, 0.5), fmt=BF16)

    def test_all_samples_count(self):
        """One large value in one set is enough."""
        assert {"it": Reason.OVERFLOW} == reasons(ONE, x(1.0), x(2.0), x(60_000.5))


class TestConstants:
    """Constants that half cannot hold."""

    def test_overflowing(self):
        """A constant beyond the range is named with its value."""
        found = verdicts("m (float[n] x) => (float[n] y) <float huge = {1e5}> { [it] y = Min(x, huge) }", x(1.0))

        assert (Reason.OVERFLOWING_CONSTANT, "`huge` holds 100000, beyond 65504") == found["it"]

    def test_constants_have_no_margin(self):
        """A constant needs no margin: 60,000 may be half."""
        assert {} == reasons("m (float[n] x) => (float[n] y) <float k = {60000.0}> { [it] y = Min(x, k) }", x(1.0))

    def test_vanishing(self):
        """A scalar that would be zero keeps its reader."""
        found = verdicts("m (float[n] x) => (float[n] y) <float eps = {1e-12}> { [it] y = Max(x, eps) }", x(1.0))

        assert (Reason.VANISHING_CONSTANT, "`eps` is 1e-12, which is 0 in fp16") == found["it"]

    def test_elements_of_weights_may_vanish(self):
        """Tiny elements of a weight are ordinary and no constraint."""
        assert {} == reasons(
            "m (float[n] x) => (float[n] y) <float[2] w = {1e-12, 1.0}> { y = Mul(x, w) }", x(1.0, 1.0)
        )


class TestGuarded:
    """Divisions that a vanishing epsilon keeps finite, on samples with a row that feels it."""

    WITH_A_SMALL_ROW = np.float32([[1.0] * 4, [0.01] * 4])

    def test_root_and_division(self):
        """From the epsilon through the root to the product that applies it, all stays."""
        found = verdicts(RMS_NORM.replace("1e-5", "1e-12"), {"x": self.WITH_A_SMALL_ROW})

        assert Reason.VANISHING_CONSTANT is found["eps"][0]
        assert ["root", "inverse", "apply"] == [name for name, (why, _) in found.items() if why is Reason.GUARDED]
        assert "an epsilon that vanishes in half keeps it from dividing by zero" == found["apply"][1]

    def test_chain_passes_through_moves(self):
        """A reshape in between changes nothing."""
        source = """
        m (float[n] x) => (float[n] y) <float eps = {1e-9}, int64[1] all = {-1}>
        { [add] a = Add(x, eps) [move] b = Reshape(a, all) [log] c = Log(b) [after] y = Tanh(c) }
        """

        assert {"add": Reason.VANISHING_CONSTANT, "move": Reason.GUARDED, "log": Reason.GUARDED} == reasons(
            source, x(1.0)
        )

    def test_division_ends_the_chain(self):
        """Nodes after the division are not guarded."""
        source = """
        m (float[n] x) => (float[n] y) <float eps = {1e-9}>
        { [add] a = Add(x, eps) [div] b = Div(x, a) [root] y = Sqrt(b) }
        """

        assert {"add", "div"} == set(reasons(source, x(1.0)))

    def test_one_over_goes_on_to_where_it_is_applied(self):
        """1 / root is applied by a product later."""
        source = RMS_NORM.replace("Reciprocal(root)", "Div(one, root)").replace(
            "float eps = {1e-5}", "float one = {1.0}, float eps = {1e-12}"
        )

        assert Reason.GUARDED is reasons(source, {"x": self.WITH_A_SMALL_ROW})["apply"]

    def test_an_epsilon_that_no_sample_feels_guards_nothing(self):
        """It becomes half's smallest number, which guards as well (`tests/exporter/operators/test_epsilons.py`)."""
        assert {} == reasons(RMS_NORM.replace("1e-5", "1e-12"), {"x": np.ones((1, 4), np.float32)})

    def test_an_epsilon_that_half_holds_guards_nothing(self):
        """1e-5 is a number in half: no rule applies, and the emulator decides."""
        assert {} == reasons(RMS_NORM, {"x": np.ones((1, 4), np.float32)})

    def test_a_tiny_scale_guards_nothing(self):
        """A vanishing factor that no root or quotient follows keeps only its own product."""
        source = "m (float[n] x) => (float[n] y) <float k = {1e-12}> { [it] a = Mul(x, k) [act] y = Tanh(a) }"

        assert {"it": Reason.VANISHING_CONSTANT} == reasons(source, x(1.0))


class TestReductions:
    """Sums that a kernel keeps in half."""

    MEAN = "m (float[n, 4096] x) => (float[n, 1] y) <int64[1] last = {-1}> { [it] y = ReduceMean(x, last) }"

    def test_sum_of_a_mean(self):
        """A mean of 20 over 4,096 elements is a sum of 81,920 inside."""
        found = verdicts(self.MEAN, {"x": np.full((1, 4096), 20.0, np.float32)})

        assert (Reason.REDUCTION, "its kernel stores 81,920 in half (over 4,096 terms)") == found["it"]

    def test_ordinary_mean(self):
        """A mean of 1 over 4,096 elements fits inside the kernel."""
        assert {} == reasons(self.MEAN, {"x": np.ones((3, 4096), np.float32)})

    def test_divisor_of_a_mean(self):
        """More terms than half can count are too many, whatever they are."""
        source = "m (float[70000] x) => (float[1] y) { [it] y = ReduceMean(x) }"

        assert {"it": Reason.REDUCTION} == reasons(source, {"x": np.full(70_000, 1e-3, np.float32)})

    @pytest.mark.parametrize(("largest", "fires"), [(100.0, False), (200.0, True)])
    def test_squares_of_a_norm(self, largest, fires):
        """ReduceL2 squares in half: 200 is already near the end."""
        source = "m (float[4] x) => (float[1] y) { [it] y = ReduceL2(x) }"

        assert fires == ("it" in reasons(source, x(largest, 0.5, 0, 0)))

    @pytest.mark.parametrize("op", ["CumSum", "CumProd", "ReduceLogSum", "ReduceLogSumExp", "ReduceProd"])
    def test_some_are_never_half(self, op):
        """Inner values of these operators are not observed on samples."""
        runs = op.startswith("Cum")
        operands, output = ("x, zero", "float[n] y") if runs else ("x", "float[1] y")
        source = f"m (float[n] x) => ({output}) <int64 zero = {{0}}> {{ [it] y = {op}({operands}) }}"
        header = '<ir_version: 12, opset_import: ["" : 26]> ' if op == "CumProd" else ""

        assert ALWAYS_SINGLE[op] == verdicts(header + source, x(0.5, 0.25))["it"]

    @pytest.mark.parametrize(
        ("op", "reduction", "reason"),
        [
            *itertools.product(["ScatterElements", "ScatterND"], ["add", "mul"], [Reason.REDUCTION]),
            *itertools.product(["ScatterND"], ["min", "max"], [Reason.NO_HALF_KERNEL]),
            *itertools.product(["ScatterElements"], ["min", "max", "none"], [None]),
            ("ScatterND", "none", None),
        ],
    )
    def test_scatters_that_compute(self, op, reduction, reason):
        """A scatter that adds or multiplies is never half: its kernels round after every update."""
        columns = 4 if op == "ScatterElements" else 1
        source = (
            f'<ir_version: 10, opset_import: ["" : 18]> m (float[3, 4] x, int64[n, {columns}] at, float[n, 4] u)'
            f' => (float[3, 4] y) {{ [it] y = {op} <reduction = "{reduction}"> (x, at, u) }}'
        )
        feeds = {"x": np.ones((3, 4), np.float32), "at": np.zeros((2, columns), np.int64)}
        found = reasons(source, feeds | {"u": np.ones((2, 4), np.float32)})

        assert reason is found.get("it")

    def test_overlapping_blocks(self):
        """Col2Im adds blocks that overlap, one after the other."""
        source = """
        m (float[1, 4, 9] x) => (float[1, 1, 4, 4] y) <int64[2] image = {4, 4}, int64[2] block = {2, 2}>
        { [it] y = Col2Im(x, image, block) }
        """

        assert {"it": Reason.REDUCTION} == reasons(source, {"x": np.ones((1, 4, 9), np.float32)})

    def test_recurrence_that_cannot_be_followed(self):
        """A recurrence is half only where the emulator can round its state at every step."""
        options = '<hidden_size = 2, direction = "bidirectional", activations = ["LeakyRelu", "LeakyRelu"]OPTION>'
        source = f"m (float[3, 1, 2] x, float[2, 2, 2] w, float[2, 2, 2] r) => (float[3, 2, 1, 2] y) {{ [it] y = RNN {options} (x, w, r) }}"
        feeds = {
            name: np.ones(shape, np.float32) for name, shape in (("x", (3, 1, 2)), ("w", (2, 2, 2)), ("r", (2, 2, 2)))
        }

        assert {} == reasons(source.replace("OPTION", ""), feeds)
        assert {"it": Reason.REDUCTION} == reasons(source.replace("OPTION", ", activation_alpha = [0.1, 0.2]"), feeds)

    def test_a_sum_that_fits_may_be_half(self):
        """ReduceSum accumulates in FP32: its result has to fit, no more."""
        source = "m (float[n] x) => (float[1] y) { [it] y = ReduceSum(x) }"

        assert {} == reasons(source, {"x": np.full(2000, 1.5, np.float32)})


class TestCounts:
    """Positions, lengths and counts in float."""

    def test_cast_of_ids(self):
        """Integers above 1 that are cast to float count, and so does arithmetic on them alone, up to the first wave."""
        source = """
        m (int64[n] p, float[n] x) => (float[n] y) <float base = {0.5}>
        { [cast] f = Cast <to = 1> (p) [scale] a = Mul(f, base) [wave] w = Sin(a) [apply] y = Mul(w, x) }
        """
        found = verdicts(source, {"p": np.arange(5), "x": np.ones(5, np.float32)})

        assert {"cast", "scale", "wave"} == set(found)
        assert (Reason.INTEGER_VALUED, "`f` is made of counts: half is exact only to 2,048") == found["cast"]

    @pytest.mark.parametrize("kind", ["bool", "int64", "int32"])
    def test_masks_do_not_count(self, kind):
        """A cast whose values are 0 and 1 is a mask, whatever it is cast from."""
        source = f"m ({kind}[n] p, float[n] x) => (float[n] y) {{ [cast] f = Cast <to = 1> (p) [apply] y = Mul(f, x) }}"
        mask = np.array([1, 0, 1]).astype({"bool": bool, "int64": np.int64, "int32": np.int32}[kind])

        assert {} == reasons(source, {"p": mask, "x": np.ones(3, np.float32)})

    def test_range(self):
        """A Range of whole numbers counts."""
        source = (
            "m (float a, float b) => (float[n] y) <float one = {1.0}> { [range] r = Range(a, b, one) [it] y = Neg(r) }"
        )

        assert {"range", "it"} == set(reasons(source, {"a": np.array(0, "f4"), "b": np.array(9, "f4")}))

    def test_range_of_fractions_is_no_count(self):
        """A Range of fractions is a grid; only the operator itself stays."""
        source = "m (float a, float b) => (float[n] y) <float step = {0.25}> { [range] r = Range(a, b, step) [it] y = Neg(r) }"

        assert {"range"} == set(reasons(source, {"a": np.array(0, "f4"), "b": np.array(1, "f4")}))

    def test_running_sum(self):
        """Positions that are summed from a mask count."""
        source = """
        m (int64[n] mask, float[n] x) => (float[n] y) <int64 axis = {0}, float one = {1.0}>
        { [cast] f = Cast <to = 1> (mask) [sum] s = CumSum(f, axis) [less] p = Sub(s, one) [apply] y = Mul(p, x) }
        """
        found = reasons(source, {"mask": np.ones(5, np.int64), "x": np.ones(5, np.float32)})

        assert {"sum": Reason.REDUCTION, "less": Reason.INTEGER_VALUED} == found

    def test_running_sum_of_fractions_is_no_count(self):
        """A cumulative probability is not a count: nodes after it may be half."""
        source = "m (float[n] x) => (float[n] y) <int64 axis = {0}> { [sum] s = CumSum(x, axis) [it] y = Neg(s) }"

        assert {"sum"} == set(reasons(source, x(0.25, 0.5)))

    def test_other_floats_end_it(self):
        """A count times a tensor of ordinary numbers is an ordinary number."""
        source = "m (int64[n] p, float[n] x) => (float[n] y) { [cast] f = Cast <to = 1> (p) [it] y = Mul(f, x) }"

        assert {"cast"} == set(reasons(source, {"p": np.arange(5), "x": np.full(5, 0.3, np.float32)}))

    def test_rotary_angles(self):
        """The outer product of positions and frequencies counts, up to its sine; other matrix products do not."""
        source = """
        m (int64[n, 1] p) => (float[n, 2] y) <float[1, 2] rates = {1.0, 0.01}>
        { [cast] f = Cast <to = 1> (p) [outer] a = MatMul(f, rates) [wave] s = Sin(a) [after] y = Neg(s) }
        """
        inner = source.replace("[n, 1] p", "[n, 2] p").replace(
            "[1, 2] rates = {1.0, 0.01}", "[2, 2] rates = {1.0, 0.01, 0.2, 0.3}"
        )

        assert {"cast", "outer", "wave"} == set(reasons(source, {"p": np.arange(5)[:, None]}))
        assert {"cast"} == set(reasons(inner, {"p": np.arange(6).reshape(3, 2)}))

    @pytest.mark.parametrize(
        ("values", "fires"),
        [((1.0, 3001.0), True), ((1.0, 2048.0), False), ((0.5, 3001.0), False), ((4096.0, 4096.0), False)],
        ids=["beyond", "exact", "fractions", "one value"],
    )
    def test_large_whole_numbers(self, values, fires):
        """Whole numbers beyond 2,048 are not exact in half, wherever they come from."""
        assert fires == (reasons(ONE, x(*values)) == {"it": Reason.INTEGER_VALUED})

    @pytest.mark.parametrize("fmt", [FP16, BF16])
    def test_numbers_that_cannot_be_but_whole(self, fmt):
        """Beyond 2^24 every number of FP32 is whole: that says nothing of counting."""
        found = verdicts(ONE, x(3e13, -1.5e12), fmt=fmt)

        assert Reason.INTEGER_VALUED not in {reason for reason, _ in found.values()}

    def test_evidence_of_large_whole_numbers(self):
        """The largest is quoted; BF16 ends at 256."""
        assert "whole numbers up to 3,001 on `x`; half is exact to 2,048" == verdicts(ONE, x(1, 3001))["it"][1]
        assert "whole numbers up to 300 on `x`; half is exact to 256" == verdicts(ONE, x(1, 300), fmt=BF16)["it"][1]


class TestTypes:
    """Types that no choice can change."""

    def test_control_flow(self):
        """The border of an If keeps its types; the nodes inside have their own rules."""
        assert {"choose": Reason.CONTROL_FLOW} == reasons(
            BRANCHES, {"x": np.ones(2, np.float32), "flag": np.array(True)}
        )

    def test_no_half_type(self):
        """An operator whose schema takes no half stays."""
        source = '<ir_version: 8, opset_import: ["" : 13]> m (float[n] x) => (float[n] y) <float s = {1.0}, uint8 z = {0}> { q = QuantizeLinear(x, s, z) [it] y = DequantizeLinear(q, s, z) }'

        assert (
            Reason.NO_HALF_TYPE,
            "DequantizeLinear (opset 13) takes no float16; from opset 19 on it does",
        ) == verdicts(source, x(1.0))["it"]

    def test_no_half_kernel(self):
        """An operator that no runtime computes in half stays."""
        source = "m (float[1, 1, 4, 4] x, float[n, 4] rois, int64[n] i) => (float[n, 1, 1, 1] y) { [it] y = RoiAlign(x, rois, i) }"
        feeds = {
            "x": np.ones((1, 1, 4, 4), np.float32),
            "rois": np.ones((1, 4), np.float32),
            "i": np.zeros(1, np.int64),
        }

        assert Reason.NO_HALF_KERNEL is reasons(source, feeds)["it"]


class TestUser:
    """`--keep-fp32` and `--force-half`."""

    @pytest.mark.parametrize(
        ("pattern", "names"),
        [("first", {"first"}), ("*s*", {"first", "bias", "second"}), ("MatMul", {"first", "second"})],
    )
    def test_keep(self, pattern, names):
        """A name, a glob or an operator type keeps its nodes; the evidence quotes the flag."""
        found = verdicts(MLP, ROW, keep=[pattern])

        assert names == set(found)
        assert {(Reason.PINNED, f"--keep-fp32 {pattern}")} == set(found.values())

    @pytest.mark.parametrize("pattern", ["it", "i?", "Neg"])
    def test_force(self, pattern):
        """A forced node is half against measurements."""
        assert {} == reasons(ONE, x(1e5), force=[pattern])

    def test_force_wins_over_keep(self):
        """Both flags together keep all nodes but one."""
        assert {"second", "bias", "act"} == set(reasons(MLP, ROW, keep=["*"], force=["first"]))

    def test_the_name_of_a_node_wins_over_a_wildcard(self):
        """A node's name in --keep-fp32 wins over a wildcard in --force-half."""
        assert {"first"} == set(reasons(MLP, ROW, keep=["first"], force=["*"]))

    def test_force_against_the_types(self):
        """A node that no type allows in half cannot be forced by name, and the error says why."""
        with pytest.raises(ConversionError, match="`choose` cannot be forced to half: the border of a If") as caught:
            verdicts(BRANCHES, {"x": np.ones(2, np.float32), "flag": np.array(True)}, force=["choose"])

        assert "--force-half" == caught.value.where

    def test_globs_force_what_can_be(self):
        """A glob that happens to fit such a node as well forces the others."""
        found = reasons(BRANCHES, {"x": np.full(2, 1e5, np.float32), "flag": np.array(True)}, force=["*"])

        assert {"choose": Reason.CONTROL_FLOW} == found


class TestUnderflow:
    """Numbers too small for half: no constraint, but the explanation when the emulator blames."""

    def test_explains(self):
        """A tensor of nothing but subnormals is named with its largest."""
        found = facts(ONE, x(1e-6, 3e-6))

        assert (Reason.UNDERFLOW, "max 3e-06 on `x`, below 6.1e-05") == underflows(node(found.model, "it"), found)

    @pytest.mark.parametrize("values", [(1e-6, 1.0), (0.0, 0.0)])
    def test_some_small_numbers_are_ordinary(self, values):
        """Small numbers among larger ones, and zeros, lose nothing that counts."""
        found = facts(ONE, x(*values))

        assert underflows(node(found.model, "it"), found) is None

    def test_is_no_constraint(self):
        """Underflow is not a constraint: the emulator decides whether lost digits matter."""
        assert {} == reasons(ONE, x(1e-6))
