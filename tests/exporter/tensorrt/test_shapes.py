"""The shapes an engine is built for: trtexec's spelling, and what follows by itself."""

import pytest

from demi.bundles.manifest import BatchSpec
from demi.engines.record import ShapeRange
from demi.errors import InputError
from demi.exporter.tensorrt.shapes import ShapeOptions, parse_shapes, shape_ranges
from demi.tensors import parse_spec

IMAGE = parse_spec("image:float32[batch,3,4,4]")
IDS, MASK = parse_spec("ids:int64[batch,seq]"), parse_spec("mask:int64[batch,seq]")
ROWS = BatchSpec(free=True, max_size=16)


def ranges(*specs, batch=ROWS, **options):
    return shape_ranges(specs, batch, ShapeOptions(**{name: parse_shapes(text) for name, text in options.items()}))


class TestParse:
    """`name:1x3x224x224,name2:1`."""

    @pytest.mark.parametrize(
        ("text", "shapes"),
        [
            ("x:1x3x224x224", {"x": (1, 3, 224, 224)}),
            ("ids:1x16, mask:1x16", {"ids": (1, 16), "mask": (1, 16)}),
            ("input:0:8", {"input:0": (8,)}),
        ],
    )
    def test_good(self, text, shapes):
        """Inputs by name, which may hold a colon."""
        assert shapes == parse_shapes(text)

    @pytest.mark.parametrize("text", ["", "x", "x:", ":1x2", "x:1,2", "x:1xa", "x:-1x2", "x:1x"])
    def test_bad(self, text):
        """The part that is none is quoted."""
        with pytest.raises(InputError, match="cannot read `"):
            parse_shapes(text)


class TestRanges:
    """From the smallest to the largest."""

    def test_rows_follow_from_the_batch(self):
        """A model whose rows alone are free needs no options."""
        assert {"image": ShapeRange((1, 3, 4, 4), (16, 3, 4, 4), (16, 3, 4, 4))} == ranges(IMAGE)

    def test_the_largest_is_enough(self):
        """Defaults are ones for the smallest shape, and the largest for the optimal one."""
        found = ranges(IDS, MASK, max="ids:8x512,mask:8x512")

        assert ShapeRange((1, 1), (8, 512), (8, 512)) == found["ids"] == found["mask"]

    def test_all_three(self):
        """Each can be said."""
        found = ranges(IDS, min="ids:2x8", opt="ids:4x64", max="ids:8x512")

        assert ShapeRange((2, 8), (4, 64), (8, 512)) == found["ids"]

    def test_the_fastest_is_the_largest_where_nothing_is_larger(self):
        """With --opt-shapes alone, the engine takes nothing beyond them."""
        assert ShapeRange((1, 1), (8, 64), (8, 64)) == ranges(IDS, opt="ids:8x64")["ids"]

    def test_fixed_inputs(self):
        """Fixed inputs keep their shapes."""
        assert ShapeRange((2, 3), (2, 3), (2, 3)) == ranges(parse_spec("x:float32[2,3]"), batch=BatchSpec(False))["x"]
        assert ShapeRange((), (), ()) == ranges(parse_spec("x:float32[]"))["x"]

    @pytest.mark.parametrize(
        ("options", "problem"),
        [
            ({}, "axis `seq` of `ids` is free"),
            ({"max": "ids:8x64,other:1"}, "--max-shapes names `other`, which is not an input"),
            ({"max": "ids:8"}, "--max-shapes: 8 is not a shape of ids"),
            ({"max": "ids:8x64", "min": "ids:9x1"}, "are not in order"),
            ({"max": "ids:8x64", "opt": "ids:8x65"}, "are not in order"),
        ],
    )
    def test_what_does_not_fit(self, options, problem):
        """Unknown names, ranks, orders, and axes of which nothing is known."""
        with pytest.raises(InputError, match=problem):
            ranges(IDS, **options)

    def test_the_hint_can_be_typed(self):
        """The flag that is missing is shown with a shape to start from."""
        with pytest.raises(InputError) as caught:
            ranges(IDS)
        assert "--max-shapes ids:16x512" in caught.value.hint

    def test_a_fixed_axis_stays(self):
        """A shape may not change what the model fixes."""
        with pytest.raises(InputError, match="1x4x4x4 is not a shape of image"):
            ranges(IMAGE, max="image:1x4x4x4")

    def test_axes_of_one_name_go_together(self):
        """Axes of one name have one size in every request, and therefore one range."""
        with pytest.raises(InputError, match="axis `seq` has"):
            ranges(IDS, MASK, max="ids:16x64,mask:16x128")
