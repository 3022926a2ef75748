"""Rows of a batch: proved to be independent by trial, or never joined."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from demi.bundles.manifest import BatchSpec, PadSpec
from demi.calibration.samples import Samples, draw_samples
from demi.calibration.sessions import session_for
from demi.errors import InferenceError
from demi.exporter.batching.proof import declare_rows, find_batch, lighter_sets, try_rows
from demi.exporter.batching.row_trial import Alone, difference, largest_size, plan_batches
from demi.exporter.batching.trial_rows import Row, rows_to_try
from demi.exporter.passes.prepare import prepare
from demi.runtime.base import CPU, Device
from demi.tensors import Feeds, TensorSpec, parse_spec

HEADER = '<ir_version: 9, opset_import: ["" : 18]>\n'


def model(text: str) -> ir.Model:
    """A prepared model from its text."""
    return prepare(ir.from_onnx_text(HEADER + text))


def tried(text: str, *feeds: Feeds, max_size: int = 8) -> BatchSpec:
    """Return the result of a trial of a model text, on given or random samples."""
    prepared = model(text)
    with session_for(prepared) as session:
        samples = Samples(feeds, "here") if feeds else draw_samples(session.inputs, 0)
    return find_batch(prepared, samples, max_size)


INDEPENDENT = {
    "elementwise": "m (float[batch,3] x) => (float[batch,3] y) { y = Relu(x) }",
    "a softmax over each row": "m (float[batch,3] x) => (float[batch,3] y) { y = Softmax<axis=-1>(x) }",
    "a made-up output axis": "m (float[batch,3] x) => (float[Gemm_dim_0,3] y) { y = Relu(x) }",
    "a wrong output axis": "m (float[batch,3] x) => (float[2,3] y) { y = Relu(x) }",
    "two names": "m (float[n,3] a, float[k,3] b) => (float[n,3] y) { y = Add(a, b) }",
    "no names": "m (float[?,3] a, float[?,3] b) => (float[?,3] y) { y = Add(a, b) }",
    "as many rows as columns": "m (float[batch,8] x) => (float[batch,8] y) { y = Relu(x) }",
    "one element": "m (float[batch] x) => (float[batch] y) { y = Relu(x) }",
    "infinite and NaN": "m (float[batch,3] x) => (float[batch,3] y) { y = Log(x) }",
}


@pytest.mark.parametrize("text", INDEPENDENT.values(), ids=INDEPENDENT)
def test_independent_rows(text):
    """A model whose rows are the same alone and in batches is proved independent, whatever the names of its axes."""
    found = tried(text)

    assert (True, "") == (found.joins, found.reason)
    assert (1, 2, 3, 8) == found.proof.sizes
    assert found.proof.difference <= 1e-5


DEPENDENT = {
    "a softmax over the batch": (
        "m (float[batch,3] x) => (float[batch,3] y) { y = Softmax<axis=0>(x) }",
        "`y` depends on the other rows of a batch",
    ),
    "a centring": (
        """m (float[batch,3] x) => (float[batch,3] y) <int64[1] axes = {0}>
        { mean = ReduceMean<keepdims=1>(x, axes) y = Sub(x, mean) }""",
        "`y` depends on the other rows of a batch",
    ),
    "a similarity of all with all": (
        "m (float[batch,3] a, float[batch,3] b) => (float[batch,batch] y) { t = Transpose<perm=[1,0]>(b) y = MatMul(a, t) }",
        "`y` has another shape beside other rows: [1, 1] alone, [1, 2] in a batch of 2",
    ),
    "a batch normalization that trains": (
        """m (float[batch,3] x) => (float[batch,3] y)
        <float[3] s = {1,1,1}, float[3] b = {0,0,0}, float[3] m = {0,0,0}, float[3] v = {1,1,1}>
        { y, mean, var = BatchNormalization<training_mode=1>(x, s, b, m, v) }""",
        "`y`",
    ),
    "a scale for the whole tensor": (
        "m (float[batch,3] x) => (float[batch,3] y) { q, s, z = DynamicQuantizeLinear(x) y = DequantizeLinear(q, s, z) }",
        "`y` depends on the other rows of a batch",
    ),
    "a decision over the whole batch": (
        """m (float[batch,3] x) => (float[batch,3] y) <float limit = {50}>
        { most = ReduceMax<keepdims=0>(x) large = Greater(most, limit)
          y = If(large) <then_branch = a () => (float[batch,3] z) { z = Neg(x) },
                         else_branch = b () => (float[batch,3] z) { z = Relu(x) }> }""",
        "`y` depends on the other rows of a batch",
    ),
    "the place in the batch": (
        """m (float[batch,3] x) => (float[batch,3] y) <float[1] one = {1}, int64 axis = {0}>
        { ones = ReduceMax<keepdims=1>(x) wide = Sub(x, x) filled = Add(wide, one)
          place = CumSum(filled, axis) y = Mul(x, place) }""",
        "`y` depends on a row's place in a batch, or on the number of rows: it differs from that of the row alone",
    ),
    "the number of rows": (
        """m (float[batch,3] x) => (float[batch,3] y) <int64[1] first = {0}>
        { same = Sub(x, x) ones = Exp(same) count = ReduceSum<keepdims=1>(ones, first) y = Mul(x, count) }""",
        "`y` depends on a row's place in a batch, or on the number of rows: it differs from that of the row alone",
    ),
    "a scalar": (
        "m (float[batch,3] x) => (float loss) { loss = ReduceSum<keepdims=0>(x) }",
        "`loss` is a scalar, which has no rows",
    ),
    "two rows for each": (
        "m (float[batch,3] x) => (float[rows,3] y) { y = Concat<axis=0>(x, x) }",
        "`y` has shape [2, 3] for a batch of 1: not one row for each",
    ),
    "rows that the values decide on": (
        """m (float[batch,1] x) => (int64[found,2] y) { z = NonZero(x) y = Transpose<perm=[1,0]>(z) }""",
        "`y` has shape [0, 2] for a batch of 1: not one row for each",
    ),
    "the batch on another axis": (
        "m (float[8,batch] x) => (float[8,batch] y) { y = Relu(x) }",
        "the first axis of input `x` is fixed at 8",
    ),
    "a state whose batch is its second axis": (
        """m (float[batch,1,4] x, float[layers,batch,4] h) => (float[batch,1,4] y) <int64[1] first = {0}>
        { state = ReduceSum<keepdims=0>(h, first) y0 = ReduceSum(state) y = Add(x, y0) }""",
        "axis `batch` is the first of input `x`, and another of `h`",
    ),
    "a last state whose batch is its second axis": (
        """m (float[batch,2,1] x) => (float[batch,2,1] y, float[layers,batch,1] h) <int64[1] first = {0}, int64[1] last = {1}>
        { y = Relu(x) state = ReduceMax<keepdims=0>(x, last) h = Unsqueeze(state, first) }""",
        "`h` has shape [1, 2, 1] for a batch of 2: not one row for each",
    ),
    "a causal sequence on the first axis": (
        "m (float[time,3] x) => (float[time,3] y) <int64 axis = {0}> { y = CumSum(x, axis) }",
        "`y` depends on the other rows of a batch",
    ),
    "a scalar input": (
        "m (float[batch,3] x, float scale) => (float[batch,3] y) { y = Mul(x, scale) }",
        "input `scale` is a scalar, which has no rows",
    ),
    "random numbers": (
        "m (float[batch,3] x) => (float[batch,3] y) { r = RandomNormalLike(x) y = Add(x, r) }",
        "it draws random numbers (`",
    ),
    "a fixed number of rows inside": (
        "m (float[batch,3] x) => (float[batch,3] y) <int64[2] shape = {1,3}> { y = Reshape(x, shape) }",
        "a batch of 2 rows fails: ONNX Runtime failed: ",
    ),
    "no more than four rows": (
        """m (float[batch,3] x) => (float[batch,3] y) <float[4,1] table = {1,1,1,1}, int64[1] zero = {0}, int64[1] one = {1}>
        { shape = Shape(x) rows = Slice(shape, zero, one, zero) part = Slice(table, zero, rows, zero) y = Mul(x, part) }""",
        "a batch of 8 rows fails: ONNX Runtime failed: ",
    ),
    "no inputs": ("m () => (float[1] y) <float[1] one = {1}> { y = Identity(one) }", "the model has no inputs"),
}


@pytest.mark.parametrize(("text", "why"), DEPENDENT.values(), ids=DEPENDENT)
def test_rows_that_cannot_be_joined(text, why):
    """A model whose output for one caller could depend on another's input is not joined, with the reason."""
    found = tried(text)

    assert (False, None) == (found.joins, found.proof)
    assert found.reason.startswith(why)


def test_words_of_the_runtime_without_its_source():
    """The reason of a failed run names the problem without lines of the runtime's source."""
    found = tried(DEPENDENT["a fixed number of rows inside"][0])

    assert "cannot be reshaped to the requested shape. Input shape:{2,3}, requested shape:{1,3}" in found.reason
    assert "/onnxruntime" not in found.reason


LOOKUP = """m (int64[batch,2] ids) => (float[batch,2,1] y) <float[100,1] table> { y = Gather(table, ids) }""".replace(
    "table>", "table = {" + ", ".join(map(str, range(100))) + "}>"
)


def test_ids_stay_valid():
    """Synthetic rows hold integers of the samples only: the smallest id is 7 here."""
    specs = (parse_spec("ids:int64[batch,2]"),)
    rows = rows_to_try(specs, [{"ids": np.int64([[7, 9], [12, 7]])}])

    assert {7, 9, 12} == {int(value) for row in rows for value in row.feeds["ids"].flat}
    assert 4 <= len(rows)
    assert tried(LOOKUP, {"ids": np.int64([[7, 99], [12, 7]])}).joins


def test_lengths_are_those_of_rows_of_one_shape():
    """A synthetic row's length input fits the row: lengths of longer samples are not used."""
    specs = (parse_spec("ids:int64[batch,time]"), parse_spec("length:int64[batch]"))
    sets = [{"ids": np.full((1, size), size), "length": np.int64([size])} for size in (9, 9, 60)]
    sets[1]["ids"] = sets[1]["ids"] + 1

    assert {9} == {int(row.feeds["length"][0]) for row in rows_to_try(specs, sets)}


def test_a_single_row_of_ids():
    """If no valid row can be made beside the only one, nothing is proved."""
    found = tried(LOOKUP, {"ids": np.int64([[7, 7]])})

    assert not found.joins
    assert "the samples hold no two rows that differ" in found.reason


def test_empty_inputs():
    """Axes without elements are supported; samples without rows prove nothing."""
    text = "m (float[batch,3] x, int64[batch,past] ids) => (float[batch,3] y) { y = Relu(x) }"
    ids = np.zeros((2, 0), np.int64)

    assert tried(text, {"x": np.eye(2, 3, dtype=np.float32), "ids": ids}).joins
    assert not tried(text, {"x": np.zeros((0, 3), np.float32), "ids": ids[:0]}).joins


def test_a_single_row_of_floats():
    """A single row of floats is enough: very different rows are made from it."""
    single = {"x": np.float32([[1, 2, 3]])}

    assert tried(INDEPENDENT["elementwise"], single).joins
    assert not tried(DEPENDENT["a softmax over the batch"][0], single).joins


def test_text():
    """Rows of strings are joined as other rows are."""
    text = "m (string[batch,1] x) => (string[batch,1] y) { y = Identity(x) }"
    rows = np.array([["one"], ["two"]], object)

    assert tried(text, {"x": rows}).joins


def test_samples_of_different_lengths():
    """Only rows of the most frequent shape are joined in the trial."""
    text = "m (float[batch,time] x) => (float[batch,time] y) { y = Relu(x) }"
    sets = [{"x": np.arange(at, at + length, dtype=np.float32)[None]} for at, length in enumerate((4, 5, 5, 6))]

    assert 5 == tried(text, *sets).proof.rows


GROUPS = """m (float[batch,2] x, int64[batch] group) => (float[batch,2] y) <int64[1] first = {0}, int64[1] last = {1}>
{ down = Unsqueeze(group, last) across = Unsqueeze(group, first) same = Equal(down, across) m = Cast<to=1>(same)
  count = ReduceSum<keepdims=1>(m, last) sum = MatMul(m, x) y = Div(sum, count) }"""


@pytest.mark.parametrize("groups", [[1, 2, 3], [2, 1, 3], [3, 1, 2], [7, 7, 7]])
def test_rows_of_one_group(groups):
    """Rows that depend only on rows with the same id are detected: one synthetic row shares the id."""
    feeds = {"x": np.float32([[1, 2], [3, 4], [5, 6]]), "group": np.int64(groups)}

    assert not tried(GROUPS, feeds).joins


@pytest.mark.parametrize("groups", [[1, 2, 3], [2, 1, 3], [3, 1, 2], [7, 7, 7]])
def test_words_of_one_group(groups):
    """Rows that depend only on rows with the same id are detected if all inputs are ids."""
    text = GROUPS.replace("float[batch,2] x, ", "int64[batch,2] ids, ").replace("{ down", "{ x = Cast<to=1>(ids) down")
    feeds = {"ids": np.int64([[1, 2], [3, 4], [5, 6]]), "group": np.int64(groups)}

    assert not tried(text, feeds).joins


HIDDEN = """m (float[batch,2] x, int64[batch,2] mask) => (float[batch,2] y) <int64[1] first = {0}>
{ shown = Cast<to=9>(mask) mean = ReduceMean<keepdims=1>(x, first) y = Where(shown, x, mean) }"""


def test_a_leak_under_a_mask():
    """A leak into masked elements is detected by synthetic rows if no sample masks anything."""
    feeds = {"x": np.float32([[1, 2], [3, 4]]), "mask": np.ones((2, 2), np.int64)}

    assert not tried(HIDDEN, feeds).joins


def test_batches_of_the_trial():
    """The first row is paired with every other on both sides, and each larger batch comes twice, with two rows exchanged."""
    quick = plan_batches(5, 32)
    pairs = [batch for batch in quick if len(batch) == 2]

    assert {(0, other) for other in range(5)} | {(other, 0) for other in range(5)} <= set(map(tuple, pairs))
    assert [3, 3, 32, 32] == [len(batch) for batch in quick if len(batch) > 2]
    for one, other in (quick[-4:-2], quick[-2:]):
        assert [row if row in (0, 1, 4) else {2: 3, 3: 2}[row] for row in one] == other
    assert {0, 1, 2, 3, 4} == set(quick[-1])


@pytest.mark.parametrize("rows", [2, 3, 4, 5])
@pytest.mark.parametrize("is_slow", [False, True])
def test_every_plan_has_batches_that_differ_in_others_alone(rows, is_slow):
    """For any number of rows, each batch size has two batches with one row in the same place beside different rows."""
    for size in {len(batch) for batch in plan_batches(rows, 8, is_slow=is_slow)} - {3}:
        batches = [batch for batch in plan_batches(rows, 8, is_slow=is_slow) if len(batch) == size]

        assert any(
            one != other and any(row == same for row, same in zip(one, other, strict=True))
            for one in batches
            for other in batches
        )


@pytest.mark.parametrize(
    ("elements", "seconds", "max_size", "expected"),
    [
        (10, 1e-6, 32, 32),
        (10, 0.05, 32, 10),
        (10, 100.0, 32, 5),
        (1 << 20, 1e-6, 32, 16),
        (10, 1e-6, 1, 2),
        (10, 9.0, 3, 3),
    ],
)
def test_the_largest_run(elements, seconds, max_size, expected):
    """The largest run has as many rows as may be joined, within the limits on time and elements."""
    alone = Alone(Row({"x": np.zeros(elements, np.float32)}), {})

    assert expected == largest_size(alone, seconds, max_size)


def test_more_rows_than_a_run_has():
    """A trial runs two rows even if the server's largest batch is 1."""
    assert (1, 2) == tried(INDEPENDENT["elementwise"], max_size=1).proof.sizes


@dataclass
class Leaky:
    """A session that adds a share of the other rows' sum to each row, and fails from `limit` rows on."""

    share: float = 0.0
    limit: int = 1000
    inputs: tuple[TensorSpec, ...] = (parse_spec("x:float32[batch,4]"),)
    outputs: tuple[TensorSpec, ...] = (parse_spec("y:float32[batch,4]"),)
    device: Device = CPU

    def run(self, feeds: Feeds, outputs: Sequence[str] | None = None) -> Feeds:
        x = feeds["x"].astype(np.float64)
        if len(x) >= self.limit:
            raise InferenceError("too many")
        return {"y": (x + self.share * (x.sum(axis=0) - x)).astype(np.float32)}


@settings(max_examples=50, deadline=None)
@given(st.floats(1e-7, 1e3), st.booleans(), st.integers(1, 8), st.integers(1, 40))
def test_any_leak_is_found(share, negative, rows, max_size):
    """A leak of any size is detected, because some synthetic rows dominate any sum over rows."""
    rng = np.random.default_rng(rows)
    samples = Samples(({"x": rng.standard_normal((rows, 4)).astype(np.float32)},), "here")

    assert not try_rows(Leaky(-share if negative else share), samples, max_size).joins
    assert try_rows(Leaky(), samples, max_size).joins


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 40), st.integers(2, 32))
def test_a_limit_inside_the_model(limit, max_size):
    """A model that fails below the largest batch is not joined."""
    samples = Samples(({"x": np.eye(4, dtype=np.float32)},), "here")

    assert (limit > max_size) is try_rows(Leaky(limit=limit), samples, max_size).joins


def test_synthetic_rows_that_fail():
    """A model that fails on a synthetic row is tried with the others."""

    class Picky(Leaky):
        def run(self, feeds, outputs=None):
            if np.abs(feeds["x"]).max() > 100:
                raise InferenceError("too large")
            return super().run(feeds, outputs)

    samples = Samples(({"x": np.eye(4, dtype=np.float32)},), "here")

    assert 4 == try_rows(Picky(), samples, 8).proof.rows
    assert not try_rows(Picky(share=0.5), samples, 8).joins


@pytest.mark.parametrize(
    ("want", "got", "scale", "expected"),
    [
        (np.float32([3, 4]), np.float32([3, 4]), 0, 0.0),
        (np.float32([3, 4]), np.float32([3, 9]), 0, 1.0),
        (np.float32([0, 0]), np.float32([0, 1]), 0, np.inf),
        (np.float32([0, 0]), np.float32([0, 1]), 10, 0.1),
        (np.float32([np.nan, 4]), np.float32([np.nan, 4]), 0, 0.0),
        (np.float32([np.nan, 4]), np.float32([3, 4]), 0, np.inf),
        (np.float32([np.inf, 4]), np.float32([-np.inf, 4]), 0, np.inf),
        (np.float32([3, 4]), np.float32([[3, 4]]), 0, np.inf),
        (np.int64([3]), np.int64([4]), 1, np.inf),
        (np.array(["a"], object), np.array(["a"], object), 0, 0.0),
    ],
)
def test_difference(want, got, scale, expected):
    """A difference is relative to the expected norm or to the scale, whichever is larger; other types must be equal."""
    assert expected == difference(want, got, scale)


def test_outputs_are_declared_as_they_are():
    """The first axis of a proved output gets the name of the batch, instead of another name or a wrong number."""
    for text in (INDEPENDENT["a made-up output axis"], INDEPENDENT["a wrong output axis"]):
        prepared = model(text)
        declare_rows(prepared, tried(text), {"y": np.zeros((1, 3))})

        assert ["batch", "3"] == [str(dim) for dim in prepared.graph.outputs[0].shape]


def test_outputs_that_are_declared_with_other_axes():
    """A declaration with too few axes is replaced."""
    prepared = model(INDEPENDENT["elementwise"])
    prepared.graph.outputs[0].shape = ir.Shape([3])
    declare_rows(prepared, tried(INDEPENDENT["elementwise"]), {"y": np.zeros((1, 3))})

    assert ["batch", "y_axis1"] == [str(dim) for dim in prepared.graph.outputs[0].shape]


def test_outputs_of_dependent_models_are_left_alone():
    """Outputs of a dependent model keep their declared axes."""
    text = "m (float[batch,3] x) => (float[rows,3] y) { y = Softmax<axis=0>(x) }"
    prepared = model(text)
    declare_rows(prepared, tried(text), {"y": np.zeros((1, 3))})

    assert "rows" == str(prepared.graph.outputs[0].shape[0])


MASKED = """m (int64[batch,length] ids, int64[batch,length] mask) => (float[batch,2] y)
<float[5,2] table = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10}, int64[1] one = {1}, int64[1] last = {-1}>
{
  rows = Gather(table, ids) m = Cast <to = 1> (mask) wide = Unsqueeze(m, last) kept = Mul(rows, wide)
  total = ReduceSum <keepdims = 0> (kept, one) count = ReduceSum <keepdims = 1> (m, one) y = Div(total, count)
}"""

TOKENS = {"ids": np.int64([[1, 2, 3], [4, 0, 0]]), "mask": np.int64([[1, 1, 1], [1, 0, 0]])}


def test_padding_is_proved_in_batches_too():
    """Padding is tried with rows of different lengths in one run, and the proof records it."""
    found = tried(MASKED, TOKENS)

    assert (PadSpec(("length",), {"ids": 0, "mask": 0}), True) == (found.pad, found.proof.padded)


def test_no_padding_where_answers_could_not_be_cut_back():
    """If the output's axis has another name, a server could not cut back the outputs, and nothing is padded."""
    text = """m (int64[batch,length] ids, int64[batch,length] mask) => (int64[batch,other] y) { y = Mul(ids, mask) }"""
    found = tried(text, TOKENS)

    assert (True, False, PadSpec()) == (found.joins, found.proof.padded, found.pad)
    assert tried(text.replace("other", "length"), TOKENS).pad.axes


def test_no_padding_beyond_the_last_position():
    """A model without positions beyond its samples' lengths is exported and not padded."""
    text = """m (int64[batch,length] ids, int64[batch,length] mask) => (float[batch,length] y)
    <float[3] table = {1, 2, 3}, int64 axis = {1}, int64 one = {1}>
    { ones = Equal(ids, ids) count = Cast<to=7>(ones) place = CumSum(count, axis) at = Sub(place, one)
      bias = Gather(table, at) m = Cast<to=1>(mask) y = Mul(bias, m) }"""
    found = tried(text, TOKENS)

    assert (True, PadSpec()) == (found.joins, found.pad)


IMAGES = prepare(ir.from_onnx_text(HEADER + "m (float[n,3,h,w] x) => (float[n,3,h,w] y) { y = Relu(x) }"))


@dataclass
class Slow:
    """A session that is slow by its own clock, or fails on images smaller than 128 by 128."""

    seconds: float
    fixed: bool = False
    now: float = 0.0
    inputs: Sequence[TensorSpec] = (parse_spec("x:float32[n,3,h,w]"),)

    def run(self, feeds: Feeds) -> Feeds:
        """Return nothing, after `seconds` of the own clock."""
        if self.fixed and feeds["x"].shape[-1] < 128:
            raise InferenceError("made for 128")
        self.now += self.seconds
        return {}

    def clock(self) -> float:
        """Return the seconds of the own clock."""
        return self.now


@pytest.mark.parametrize(
    ("session", "side"),
    [(Slow(0.0), 128), (Slow(0.08), 64), (Slow(0.08, fixed=True), 128)],
    ids=["quick", "slow", "slow and of a fixed size"],
)
def test_slow_rows_are_tried_in_part(session, side):
    """Rows that take four times too long are cropped to the middle quarter, if the model runs on it."""
    sets = [{"x": np.zeros((2, 3, 128, 128), np.float32)}]

    assert [(2, 3, side, side)] == [feeds["x"].shape for feeds in lighter_sets(IMAGES, session, sets, session.clock)]


def test_a_leak_is_found_on_crops():
    """A leak between rows is found on the middle of large images as well."""
    text = "m (float[n,3,h,w] x) => (float[n,3,h,w] y) { y = Softmax<axis=0>(x) }"
    prepared = model(text)
    sets = [{"x": np.random.default_rng(0).normal(size=(2, 3, 128, 128)).astype(np.float32)}]
    slow = Slow(0.08)
    parts = lighter_sets(prepared, slow, sets, slow.clock)

    assert not find_batch(prepared, Samples(parts, "here"), 8).joins
