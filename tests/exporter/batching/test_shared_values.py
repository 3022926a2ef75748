"""Values that all rows of a batch share: rows that no trial of the samples sees depend on each other are never joined."""

from __future__ import annotations

import numpy as np
import pytest

from tests.exporter.batching.test_proof import tried

IDS = {"ids": np.arange(16).reshape(4, 4)}
FLOATS = {"x": np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)}

SHARED = {
    "a rare id in any row": (
        """m (int64[batch,4] ids) => (float[batch,4] y) <int64 image = {99}>
        { is = Equal(ids, image) one = Cast<to=6>(is) any = ReduceMax<keepdims=0>(one) found = Cast<to=9>(any)
          x = Cast<to=1>(ids)
          y = If(found) <then_branch = a () => (float[batch,4] z) { z = Neg(x) },
                         else_branch = b () => (float[batch,4] z) { z = Relu(x) }> }""",
        IDS,
        "`any` (ReduceMax) is computed from all rows of a batch together, so that a row may change others",
    ),
    "a range that no sample and no synthetic row is in": (
        """m (float[batch,3] x) => (float[batch,3] y) <float low = {4.5}, float high = {9}>
        { most = ReduceMax<keepdims=0>(x) above = Greater(most, low) below = Less(most, high) inside = And(above, below)
          z = Neg(x) y = Where(inside, z, x) }""",
        FLOATS,
        "`most` (ReduceMax)",
    ),
    "a rare id in an earlier row": (
        """m (int64[batch,4] ids) => (int64[batch,4] y) <int64 image = {99}, int64 axis = {0}>
        { is = Equal(ids, image) one = Cast<to=7>(is) seen = CumSum(one, axis) y = Add(ids, seen) }""",
        IDS,
        "`seen` (CumSum)",
    ),
    "a rare id in a pair of rows": (
        """m (int64[batch,4] ids) => (int64[batch,4] y) <int64 image = {99}, int64[1] last = {1}>
        { is = Equal(ids, image) one = Cast<to=7>(is) mine = ReduceMax<keepdims=1>(one, last)
          theirs = Transpose<perm=[1,0]>(mine) pairs = Mul(mine, theirs) some = ReduceMax<keepdims=1>(pairs, last)
          y = Add(ids, some) }""",
        IDS,
        "`pairs` (Mul)",
    ),
}

OWN = {
    "a rare id in the row itself": (
        """m (int64[batch,4] ids) => (int64[batch,4] y) <int64 image = {99}, int64[1] last = {1}>
        { is = Equal(ids, image) one = Cast<to=7>(is) any = ReduceMax<keepdims=1>(one, last) y = Add(ids, any) }""",
        IDS,
    ),
    "the length, which is no value of a row": (
        """m (int64[batch,time] ids) => (int64[batch,time] y) <int64 zero = {0}, int64 one = {1}>
        { shape = Shape(ids) time = Gather(shape, one) places = Range(zero, time, one) y = Add(ids, places) }""",
        IDS,
    ),
    "places of a rare id, of which there are none": (
        """m (int64[batch,4] ids) => (int64[batch,4] y) <int64 image = {99}>
        { is = Equal(ids, image) found = NonZero(is) at = Transpose<perm=[1,0]>(found)
          values = GatherND(ids, at) more = Neg(values) y = ScatterND(ids, at, more) }""",
        IDS,
    ),
}


@pytest.mark.parametrize(("text", "feeds", "why"), SHARED.values(), ids=SHARED)
def test_rows_that_share_a_value_are_not_joined(text, feeds, why):
    found = tried(text, feeds)

    assert not found.joins
    assert found.why_not.startswith(why)


@pytest.mark.parametrize(("text", "feeds"), OWN.values(), ids=OWN)
def test_rows_with_values_of_their_own_are_joined(text, feeds):
    assert tried(text, feeds).joins
