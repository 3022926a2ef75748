"""Samples say which axes are free, and an axis that cannot be freed is refused with the way out."""

from __future__ import annotations

import numpy as np
import pytest

from demi.errors import SampleError
from demi.exporter.pipeline import export_bundle
from demi.exporter.request import ExportRequest
from demi.exporter.sources.free_axes import best_example, freed, freed_specs, varying_axes
from demi.exporter.sources.options import Source, SourceOptions
from demi.exporter.sources.samples import FIXED_AXIS, gather_samples
from demi.tensors import DType, TensorSpec
from tests.models import MLP, parse, text


def sets(*shapes):
    """One set of samples of each shape."""
    return [{"x": np.ones(shape, np.float32)} for shape in shapes]


@pytest.mark.parametrize(
    ("shapes", "axes"),
    [
        ([(2, 3)], set()),
        ([(2, 3), (2, 3)], set()),
        ([(2, 3), (2, 5)], {1}),
        ([(2, 3), (4, 5)], {0, 1}),
        ([(1, 0, 4)], {1}),
        ([(2, 3), (2, 3, 1)], set()),
    ],
)
def test_varying_axes(shapes, axes):
    """An axis varies where two sets differ in it, or one leaves it empty; other ranks say nothing."""
    assert axes == varying_axes("x", sets(*shapes))


def test_names_that_were_given_stay():
    """Only a fixed size becomes free."""
    assert ("batch", "x_dim1", 4) == freed("x", ("batch", 3, 4), sets((1, 3, 4), (2, 5, 4)))


def test_specs():
    """The specs of a configuration follow what samples show."""
    spec = TensorSpec("x", DType.FP32, ("batch", 3, 224, 224))

    assert [("batch", 3, "x_dim2", 224)] == [
        each.shape for each in freed_specs([spec], sets((1, 3, 224, 224), (1, 3, 256, 224)))
    ]


def test_best_example():
    """A set with an empty axis, or one of size 1, shows less than another."""
    found = [best_example(sets(*shapes))["x"].shape for shapes in ([(1, 0), (1, 4), (2, 4)], [(1, 4), (3, 4)])]

    assert [(2, 4), (3, 4)] == found


@pytest.mark.parametrize("kind", FIXED_AXIS)
def test_a_size_that_the_source_fixes(kind):
    """The error says what to do, by the kind of source."""
    source = Source(parse(MLP), kind)
    specs = (TensorSpec("x", DType.FP32, ("batch", 4)),)

    with pytest.raises(SampleError, match=r"has shape \[2, 5\]") as caught:
        gather_samples(specs, source, SourceOptions(samples=tuple(sets((2, 4), (2, 5)))), "x.npz")

    assert FIXED_AXIS[kind] == caught.value.hint


def test_a_wrong_name_for_an_onnx_file(tmp_path):
    """It is refused before the model is run, with the correct name."""
    (tmp_path / "m.onnx").write_bytes(text(parse(MLP)))
    options = SourceOptions(samples=({"y": np.ones((2, 4), np.float32)},))

    with pytest.raises(SampleError, match="input `x` is missing from the samples; there is y"):
        export_bundle(ExportRequest(tmp_path / "m.onnx", tmp_path / "out", options=options))
