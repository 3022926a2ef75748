"""Crops of large inputs."""

import numpy as np

from demi.exporter.planning.cropping import STEP, crop
from tests.models import prepared

IMAGE = "m (float[n, 3, h, w] x) => (float[n, 3, h, w] y) { y = Identity(x) }"
WORDS = "m (int64[n, time] ids, int64[n, time] mask, float[n, 8] other) => (int64[n, time] y) { y = Add(ids, mask) }"


def test_an_image():
    """A quarter of the pixels is half of each side, from the middle; channels and rows are kept."""
    x = np.arange(2 * 3 * 128 * 256).reshape(2, 3, 128, 256)
    part = crop(prepared(IMAGE), {"x": x}, 0.25)

    assert np.array_equal(x[:, :, 32:96, 64:192], part["x"])


def test_a_sequence():
    """Inputs that share an axis are cropped alike, and others are kept whole."""
    ids, other = np.arange(256).reshape(2, 128), np.ones((2, 8))
    part = crop(prepared(WORDS), {"ids": ids, "mask": ids + 1, "other": other}, 0.3)

    assert [(2, 32), (2, 32), (2, 8)] == [part[name].shape for name in ("ids", "mask", "other")]
    assert np.array_equal(part["ids"] + 1, part["mask"])


def test_never_less_than_a_step():
    """However small the share is, each side keeps at least 32 elements."""
    part = crop(prepared(IMAGE), {"x": np.zeros((1, 3, 64, 64))}, 1e-6)

    assert (1, 3, STEP, STEP) == part["x"].shape


def test_nothing_to_give():
    """Small inputs and fixed ones are not cropped."""
    assert crop(prepared(IMAGE), {"x": np.zeros((1, 3, 40, 40))}, 0.1) is None
    fixed = prepared("m (float[n, 3, 640, 640] x) => (float[n, 3, 640, 640] y) { y = Identity(x) }")
    assert crop(fixed, {"x": np.zeros((1, 3, 640, 640))}, 0.1) is None
    assert crop(prepared(IMAGE), {"x": np.zeros((1, 3, 640, 640))}, 1.0) is None
