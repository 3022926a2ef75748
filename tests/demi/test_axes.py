"""Named and unnamed axes: only axes with the same name must be equal."""

import numpy as np
import pytest

from demi.axes import is_name, named
from demi.tensors import DType, TensorSpec, check_feeds

SIGNS = ["?", "-1", "None", "none", "null", "unk__", "unk", "unknown", "dynamic", "*", "", " ", None]


@pytest.mark.parametrize("sign", SIGNS)
def test_placeholders_are_not_names(sign):
    """Placeholders that exporters write for unknown axes are not names."""
    assert not is_name(sign)


@pytest.mark.parametrize(
    "name", ["batch", "N", "unk__12", "s0", "batch_size", "dynamic_axes_1", "2*n", "none_1", "长度"]
)
def test_a_name_is_a_name(name):
    """Any other text is a name."""
    assert is_name(name)


@pytest.mark.parametrize("sign", [*SIGNS, -1])
def test_an_axis_without_a_name_gets_one_of_its_own(sign):
    """An unnamed axis is named after its tensor and position."""
    assert ("x_axis0", 4, "seq") == TensorSpec("x", DType.FP32, (sign, 4, "seq")).shape


def test_sizes_and_names_stay():
    """Sizes and names are kept; an empty axis has size 0."""
    assert ("batch", 0, 3) == tuple(named("x", axis, dim) for axis, dim in enumerate(("batch", 0, 3)))


def test_nameless_axes_may_differ_in_size():
    """Two inputs whose axes are all called `?` may have any sizes."""
    specs = [TensorSpec("x", DType.FP32, ("?", "?")), TensorSpec("z", DType.FP32, ("?", 3))]
    feeds = {"x": np.zeros((2, 5), np.float32), "z": np.zeros((4, 3), np.float32)}

    assert {"x", "z"} == set(check_feeds(specs, feeds))
