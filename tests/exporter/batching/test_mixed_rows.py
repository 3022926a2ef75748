"""Rows that meet in a branch which no sample takes are never joined."""

from __future__ import annotations

import numpy as np
import pytest

from demi.exporter.batching.mixed_rows import exchanges
from tests.exporter.batching.test_proof import tried

X = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
FEEDS = {"x": X, "ids": np.arange(32).reshape(8, 4)}


def rarely(nodes: str, constants: str = "") -> str:
    """Return a model that answers `z` for rows with the id 99, which no sample holds, and `x` for all others."""
    return f"""m (float[batch,4] x, int64[batch,4] ids) => (float[batch,4] y)
    <int64 image = {{99}}, int64[1] last = {{1}}, int64[1] first = {{0}}, int64 zero = {{0}}, int64 one = {{1}}{constants}>
    {{ is = Equal(ids, image) flag = Cast<to=1>(is) most = ReduceMax<keepdims=1>(flag, last) rare = Cast<to=9>(most)
      {nodes}
      y = Where(rare, z, x) }}"""


LOOP_UNTIL = """m (float[batch,4] x) => (float[batch,4] y) <int64 turns = {10}, bool go = {1}, float limit = {1e30}>
{ y = Loop(turns, go, x) <body = b (int64 turn, bool going, float[batch,4] state) => (bool more, float[batch,4] next)
  { next = Add(state, state) highest = ReduceMax<keepdims=0>(next) more = Less(highest, limit) }> }"""

MIXED = {
    "the row behind": (
        rarely(
            """shape = Shape<start=0, end=1>(x) rows = Squeeze(shape) places = Range(zero, rows, one)
            behind = Add(places, one) turned = Mod(behind, rows) z = Gather<axis=0>(x, turned)"""
        ),
        "a row of `z` (Gather) depends on other rows",
    ),
    "sums of the rows before": (
        rarely(
            """shape = Shape<start=0, end=1>(x) square = Concat<axis=0>(shape, shape)
            ones = ConstantOfShape<value = float[1] {1}>(square) triangle = Trilu<upper=0>(ones)
            z = MatMul(triangle, x)"""
        ),
        "a row of `z` (MatMul) depends on other rows",
    ),
    "a normalization over rows": (
        rarely("z = LayerNormalization<axis=0>(x, scale)", ", float[1,4] scale = {1, 1, 1, 1}"),
        "a row of `z` (LayerNormalization) depends on other rows",
    ),
    "a window of rows": (
        rarely(
            """turned = Transpose<perm=[1,0]>(x) image3 = Unsqueeze(turned, first)
            pooled = MaxPool<kernel_shape=[3], pads=[1,1]>(image3) flat = Squeeze(pooled, first)
            z = Transpose<perm=[1,0]>(flat)"""
        ),
        "a row of `pooled` (MaxPool) depends on other rows",
    ),
    "turns of a Loop that reads all rows": (
        rarely(
            """shape = Shape<start=0, end=1>(x) rows = Squeeze(shape)
            z = Loop(rows, go) <body = b (int64 turn, bool going) => (bool same, float[4] row)
            { own = Gather<axis=0>(x, turn) mean = ReduceMean<keepdims=0>(x, first) row = Sub(own, mean)
              same = Identity(going) }>""",
            ", bool go = {1}",
        ),
        "a row of `z` (Loop) depends on other rows",
    ),
    "turns until any row is large": (LOOP_UNTIL, "`highest` (ReduceMax) is computed from all rows of a batch together"),
    "a flag of any row, inside of a Scan": (
        """m (float[batch,4] x, float[batch,3] steps) => (float[batch,4] y) <float rare = {4.75}>
        { turns = Transpose<perm=[1,0]>(steps)
          y = Scan<num_scan_inputs=1, body = b (float[batch,4] state, float[batch] step) => (float[batch,4] next)
          { is = Equal(step, rare) flag = Cast<to=1>(is) any = ReduceMax<keepdims=0>(flag)
            more = Add(state, any) next = Identity(more) }>(x, turns) }""",
        "`any` (ReduceMax) is computed from all rows of a batch together",
    ),
    "a softmax over selected rows, of which there are none": (
        rarely(
            """column = Squeeze(rare, last) found = NonZero(column) at = Squeeze(found, first)
            chosen = Gather<axis=0>(x, at) shares = Softmax<axis=0>(chosen) places = Transpose<perm=[1,0]>(found)
            z = ScatterND(x, places, shares)"""
        ),
        "`shares` (Softmax) is computed from the rows that the model selects, and it selects none of the samples'",
    ),
}

OWN = {
    "windows of a row": """m (float[batch,4] x) => (float[batch,4] y) <int64[2] windows = {-1, 2}, int64[2] back = {-1, 4}>
    { parts = Reshape(x, windows) softened = Softmax<axis=-1>(parts) y = Reshape(softened, back) }""",
    "the rows of a sequence, time first": """m (float[batch,4] x) => (float[batch,4] y)
    <int64[2] column = {-1, 1}, int64[2] back = {4, -1}>
    { turned = Transpose<perm=[1,0]>(x) flat = Reshape(turned, column) more = Exp(flat) apart = Reshape(more, back)
      y = Transpose<perm=[1,0]>(apart) }""",
    "a number of turns, counted": """m (float[batch,4] x) => (float[batch,4] y)
    <int64 most = {9}, bool go = {1}, int64 none = {0}, int64 one = {1}, int64 enough = {3}>
    { turns, y = Loop(most, go, none, x) <body = b (int64 turn, bool going, int64 done, float[batch,4] state)
      => (bool more, int64 counted, float[batch,4] next)
      { counted = Add(done, one) more = Less(counted, enough) next = Tanh(state) }> }""",
    "an expert that no sample reaches": rarely(
        """column = Squeeze(rare, last) found = NonZero(column) at = Squeeze(found, first)
        chosen = Gather<axis=0>(x, at) softened = Softmax<axis=-1>(chosen) mean = ReduceMean<keepdims=1>(softened, last)
        less = Sub(softened, mean) places = Transpose<perm=[1,0]>(found) z = ScatterND(x, places, less)"""
    ),
}


@pytest.mark.parametrize(("text", "why"), MIXED.values(), ids=MIXED)
def test_rows_that_meet_are_not_joined(text, why):
    """The reason names the first tensor in which a row depends on others."""
    found = tried(text, {name: FEEDS[name] for name in FEEDS if f"batch,4] {name}" in text} | _steps(text))

    assert not found.joins
    assert found.why_not == f"{why}, so that a row may change others"


@pytest.mark.parametrize("text", OWN.values(), ids=OWN)
def test_rows_that_do_not_meet_are_joined(text):
    """Rows may be cut into parts, take turns with the time axis, and be selected."""
    assert tried(text, {name: FEEDS[name] for name in FEEDS if f"batch,4] {name}" in text}).joins


@pytest.mark.parametrize("rows", [2, 3, 4, 5])
def test_one_row_is_exchanged_at_a_time(rows):
    """Each batch differs from the first in another place, and there by another row."""
    first, *others = exchanges(rows)

    for place, batch in enumerate(others):
        assert [place] == [at for at, (one, other) in enumerate(zip(first, batch, strict=True)) if one != other]
        assert all(row < rows for row in batch)


def _steps(text: str) -> dict[str, np.ndarray]:
    return {"steps": X[:, :3]} if "steps" in text else {}
