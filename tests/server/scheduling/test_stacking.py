"""Stacking: joining and splitting rows."""

from __future__ import annotations

import numpy as np
import pytest

from demi.errors import InferenceError
from demi.server.scheduling.stacking import concatenate, cut, one_row, split


def test_joined_and_split_again():
    """Parts of any size are split back unchanged, strings and half precision included."""
    parts = [
        {"x": np.full((rows, 2), rows, np.float16), "text": np.array([f"{rows}"] * rows, object)} for rows in (1, 3, 2)
    ]
    whole = concatenate(parts)

    assert ((6, 2), np.float16) == (whole["x"].shape, whole["x"].dtype)
    for part, back in zip(parts, split(whole, [1, 3, 2]), strict=True):
        assert all(np.array_equal(part[name], back[name]) for name in part)


def test_one_part_is_not_copied():
    """A single part is returned without a copy."""
    x = np.zeros((2, 2))

    assert x is concatenate([{"x": x}])["x"]


@pytest.mark.parametrize("count", [1, 2])
def test_a_runtime_gets_aligned_memory(count):
    """Unaligned tensors of a request's body are copied to aligned memory."""
    x = np.frombuffer(bytes(17), np.uint8)[1:].view(np.float32)
    assert not x.flags.aligned

    joined = concatenate([{"x": x}] * count)["x"]

    assert joined.flags.aligned
    assert [0.0] * 4 * count == joined.tolist()


def test_a_slice_is_not_copied():
    """Slices of a large request, and of a run's outputs, share memory with them."""
    x = np.arange(10)

    assert np.shares_memory(x, cut({"x": x}, 2, 4)["x"])
    assert np.shares_memory(x, split({"x": x}, [3, 7])[1]["x"])


@pytest.mark.parametrize("values", [np.zeros(3), np.zeros(()), np.zeros((5, 4))])
def test_outputs_without_a_row_for_each_row(values):
    """An output that cannot be split raises an error with its name."""
    with pytest.raises(InferenceError, match=r"output `y` has shape .* for a batch of 4 rows"):
        split({"y": values}, [1, 3])


def test_one_row_for_none():
    """A row of zeros or empty strings, in the shape of the other axes."""
    found = one_row({"x": np.zeros((0, 3), np.float16), "text": np.zeros((0,), object)})

    assert ((1, 3), np.float16, [b""]) == (found["x"].shape, found["x"].dtype, found["text"].tolist())
