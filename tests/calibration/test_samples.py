"""Samples: read from files or functions, checked against the model, or drawn with a seed."""

import ml_dtypes
import numpy as np
import pytest

from demi.calibration.samples import (
    FREE_AXIS,
    MOST_SETS,
    draw_samples,
    fit_samples,
    load_arrays,
    split_rows,
)
from demi.errors import SampleError
from demi.tensors import DType, TensorSpec

X = TensorSpec("x", DType.FP32, ("batch", 3))
IDS = TensorSpec("input_ids", DType.INT64, ("batch", "seq"))
MASK = TensorSpec("attention_mask", DType.INT64, ("batch", "seq"))


class TestLoading:
    """Samples from files."""

    def test_npz(self, tmp_path):
        """An `.npz` file is one set of arrays by name."""
        np.savez(tmp_path / "s.npz", x=np.ones(2), labels=np.array([1]))

        (feeds,) = load_arrays(tmp_path / "s.npz")

        assert ["x", "labels"] == list(feeds)

    def test_bfloat16(self, tmp_path):
        """NumPy saves ml_dtypes' bfloat16 without its name; it is read as float32."""
        numbers = np.array([1.0, -2.5], ml_dtypes.bfloat16)
        np.savez(tmp_path / "s.npz", x=numbers)

        (feeds,) = load_arrays(tmp_path / "s.npz")

        assert np.float32 == feeds["x"].dtype
        assert [1.0, -2.5] == feeds["x"].tolist()

    def test_folder(self, tmp_path):
        """A folder is one set for each `.npz` in it, in order of names; other files are ignored."""
        for name in ("b", "a", "c"):
            np.savez(tmp_path / f"{name}.npz", x=np.array([ord(name)]))
        (tmp_path / "notes.txt").write_text("not a sample")

        assert [97, 98, 99] == [feeds["x"][0] for feeds in load_arrays(tmp_path)]

    def test_empty_folder(self, tmp_path):
        """A folder without samples raises an error."""
        with pytest.raises(SampleError, match=r"holds no \.npz files"):
            load_arrays(tmp_path)

    def test_missing_file(self, tmp_path):
        """A missing file raises an error."""
        with pytest.raises(SampleError, match="no such sample file") as caught:
            load_arrays(tmp_path / "none.npz")
        assert str(tmp_path / "none.npz") == caught.value.where

    def test_single_array(self, tmp_path):
        """A single `.npy` has no names, and the hint shows how to save samples."""
        np.save(tmp_path / "x.npy", np.ones(3))
        with pytest.raises(SampleError, match="single array") as caught:
            load_arrays(tmp_path / "x.npy")
        assert "numpy.savez" in caught.value.hint

    @pytest.mark.parametrize(
        "damage",
        [
            lambda data: b"",
            lambda data: b"text",
            lambda data: data[:-30],
            lambda data: data.replace(b"NUMPY", b"NUMBY"),
        ],
        ids=["empty", "text", "truncated", "garbled"],
    )
    def test_damaged(self, tmp_path, damage):
        """A file that cannot be read raises an error, whatever the damage."""
        path = tmp_path / "s.npz"
        np.savez(path, x=np.ones(100))
        path.write_bytes(damage(path.read_bytes()))
        with pytest.raises(SampleError, match="cannot be read"):
            load_arrays(path)

    def test_pickled_objects_are_refused(self, tmp_path):
        """Pickled objects, which could run code, are not loaded."""
        np.savez(tmp_path / "s.npz", x=np.array([{"a": 1}], object))
        with pytest.raises(SampleError, match="or holds Python objects"):
            load_arrays(tmp_path / "s.npz")


def yield_three():
    """Yield a user's own samples."""
    for index in range(3):
        yield {"x": [[float(index)] * 3]}


def yield_forever():
    """Yield samples without end."""
    return iter(lambda: {"x": np.zeros((1, 3))}, None)


def exit_process():
    """Exit the process."""
    raise SystemExit(0)


def yield_badly():
    """Raise an error after the first sample."""
    yield {"x": np.zeros(3)}
    raise RuntimeError("the disk is gone")


def yield_nothing():
    """Yield no sets of inputs."""
    return iter(())


class TestFunctions:
    """`package.module:function`."""

    def test_sets_in_order(self):
        """A user's function yields sets of inputs; lists become arrays."""
        assert [0.0, 1.0, 2.0] == [feeds["x"][0, 0] for feeds in load_arrays(f"{__name__}:yield_three")]

    def test_endless(self):
        """An endless iterator is cut off."""
        assert MOST_SETS == len(load_arrays(f"{__name__}:yield_forever"))

    @pytest.mark.parametrize(
        ("name", "text"),
        [
            (f"{__name__}:yield_badly", "the disk is gone"),
            (f"{__name__}:nothing", "no attribute 'nothing'"),
            (f"{__name__}:exit_process", "SystemExit: 0"),
            ("no_such_module:samples", "No module named"),
            (f"{__name__}:yield_nothing", "it yields nothing"),
        ],
    )
    def test_function_that_fails(self, name, text):
        """An error in the user's code names the function."""
        with pytest.raises(SampleError, match=text) as caught:
            load_arrays(name)
        assert f"`{name}` returned no samples" in str(caught.value)

    def test_file_with_a_colon(self, tmp_path):
        """A file whose name contains a colon is read as a file."""
        np.savez(tmp_path / "a:b.npz", x=np.ones(1))

        assert ["x"] == list(load_arrays(str(tmp_path / "a:b.npz"))[0])


class TestFitting:
    """Arrays compared with the model's inputs."""

    def test_extra_arrays_are_left_out(self):
        """Arrays for which the model has no input, such as labels, are ignored."""
        samples = fit_samples([{"labels": np.ones(2), "x": np.ones((2, 3), np.float32)}], [X], "s.npz")

        assert ["x"] == list(samples.feeds[0])
        assert ("s.npz", False, 1) == (samples.origin, samples.drawn, len(samples))

    def test_integers_are_widened(self):
        """int32 ids are widened to int64."""
        samples = fit_samples([{"input_ids": np.ones((1, 2), np.int32)}], [IDS], "s.npz")

        assert np.int64 == samples.feeds[0]["input_ids"].dtype

    def test_integers_that_fit_are_narrowed(self):
        """int64 values are narrowed to int32 if all of them fit."""
        spec = TensorSpec("n", DType.INT32, (1,))

        assert np.int32 == fit_samples([{"n": np.array([5])}], [spec], "s").feeds[0]["n"].dtype
        with pytest.raises(SampleError, match="`n` has dtype int64"):
            fit_samples([{"n": np.array([2**40])}], [spec], "s")

    def test_doubles_are_narrowed(self):
        """float64, NumPy's default, is narrowed to float32."""
        samples = fit_samples([{"x": np.ones((1, 3))}], [X], "s.npz")

        assert np.float32 == samples.feeds[0]["x"].dtype

    @pytest.mark.parametrize(
        ("feeds", "text"),
        [
            ({"z": np.ones(1)}, "input `x` is missing"),
            ({"x": np.ones((2, 4), np.float32)}, "input `x` has shape"),
            ({"x": np.ones((2, 3), np.int64)}, "input `x` has dtype int64"),
            ({"x": np.full((1, 3), 1e300)}, "input `x` holds 1e\\+300"),
        ],
        ids=["name", "shape", "dtype", "range"],
    )
    def test_array_that_does_not_fit_is_named(self, feeds, text):
        """An array that does not fit is named, with its file."""
        with pytest.raises(SampleError, match=text) as caught:
            fit_samples([feeds], [X], "s.npz")
        assert "s.npz" == caught.value.where
        assert caught.value.hint

    def test_set_is_named(self):
        """Of several sets, the one that does not fit is named by its number."""
        good = {"x": np.ones((2, 3), np.float32)}
        with pytest.raises(SampleError) as caught:
            fit_samples([good, {}], [X], "folder")
        assert "folder, set 2" == caught.value.where

    def test_no_sets(self):
        """No sets at all raise an error."""
        with pytest.raises(SampleError, match="no samples"):
            fit_samples([], [X], "s.npz")


class TestDrawing:
    """Drawn samples."""

    def test_seed_decides(self):
        """The same seed draws the same inputs, another seed different ones."""
        first, again, other = (draw_samples([X], seed).feeds[0]["x"] for seed in (1, 1, 2))

        np.testing.assert_array_equal(first, again)
        assert not np.array_equal(first, other)

    def test_origin_of_drawn_samples(self):
        """The origin of drawn samples says that they are guesses, and states the seed."""
        samples = draw_samples([X], 7)

        assert samples.drawn
        assert "4 sets of 2 rows drawn at random (seed 7)" == samples.origin

    @pytest.mark.parametrize(
        "dtype", [each for each in DType if each not in (DType.BYTES, DType.BF16)], ids=lambda dtype: dtype.value
    )
    def test_every_dtype_fits(self, dtype):
        """Drawn samples fit their specs."""
        spec = TensorSpec("x", dtype, ("batch", "n", 3))

        samples = draw_samples([spec], 0)

        assert len(fit_samples(samples.feeds, [spec], "drawn")) == len(samples)

    def test_sizes_of_free_axes(self):
        """The first axis is the batch; other free axes have a fixed size."""
        assert (2, FREE_AXIS) == draw_samples([IDS], 0).feeds[0]["input_ids"].shape
        assert (5, FREE_AXIS) == draw_samples([IDS], 0, batch=5).feeds[0]["input_ids"].shape

    def test_axes_of_one_name_share_their_size(self):
        """A name that is not a batch axis everywhere has one size wherever it occurs."""
        positions = TensorSpec("positions", DType.INT64, ("seq",))

        samples = draw_samples([IDS, positions], 0)

        assert len(fit_samples(samples.feeds, [IDS, positions], "drawn")) == 4
        assert (FREE_AXIS,) == samples.feeds[0]["positions"].shape

    def test_ids_respect_their_limits(self):
        """Ids are below the number of rows of their embedding, and reach the last one."""
        samples = draw_samples([IDS], 0, index_limits={"input_ids": 5})
        ids = np.concatenate([feeds["input_ids"].ravel() for feeds in samples.feeds])

        assert {0, 1, 2, 3, 4} == set(ids.tolist())

    def test_integers_without_a_limit_are_small(self):
        """Integers without a known limit are 0 or 1, since any table has two rows."""
        assert draw_samples([IDS], 0).feeds[0]["input_ids"].max() <= 1

    def test_masks_are_ones(self):
        """Masks are drawn as ones."""
        assert np.all(draw_samples([MASK], 0).feeds[0]["attention_mask"] == 1)

    def test_strings_cannot_be_drawn(self):
        """String inputs need real samples."""
        with pytest.raises(SampleError, match="strings") as caught:
            draw_samples([TensorSpec("s", DType.BYTES, (1,))], 0)
        assert "--sample" in caught.value.hint


class TestSplitting:
    """Splitting of a large set into sets of a few rows."""

    def test_rows(self):
        """All inputs are split alike; the last set holds the rest."""
        feeds = {"x": np.arange(15, dtype=np.float32).reshape(5, 3), "input_ids": np.ones((5, 2), np.int64)}
        parts = split_rows(feeds, [X, IDS], 2)

        assert [2, 2, 1] == [len(part["x"]) for part in parts]
        assert [2, 2, 1] == [len(part["input_ids"]) for part in parts]
        np.testing.assert_array_equal(feeds["x"], np.concatenate([part["x"] for part in parts]))

    @pytest.mark.parametrize(
        "spec", [TensorSpec("m", DType.FP32, (4,)), TensorSpec("m", DType.FP32, ())], ids=["fixed", "scalar"]
    )
    def test_input_without_a_batch(self, spec):
        """A set with an input without a free first axis is not split."""
        feeds = {"x": np.ones((4, 3), np.float32), "m": np.ones(spec.shape, np.float32)}

        assert [feeds] == split_rows(feeds, [X, spec], 2)

    def test_batches_of_other_sizes(self):
        """Inputs with batches of different sizes are not split."""
        feeds = {"x": np.ones((4, 3), np.float32), "input_ids": np.ones((2, 2), np.int64)}

        assert 1 == len(split_rows(feeds, [X, IDS], 1))

    def test_axes_of_other_names(self):
        """Two first axes with different names and equal lengths are not one batch."""
        feeds = {"x": np.ones((4, 3), np.float32), "z": np.ones((4, 3), np.float32)}

        assert [feeds] == split_rows(feeds, [X, TensorSpec("z", DType.FP32, ("others", 3))], 2)

    def test_empty_set(self):
        """A set of no rows is still a set."""
        assert 1 == len(split_rows({"x": np.ones((0, 3), np.float32)}, [X], 2))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.full((2, 4), np.nan, np.float32), "holds only NaN and infinities"),
        (np.full((2, 4), np.inf, np.float32), "holds only NaN and infinities"),
        (np.zeros((0, 4), np.float32), "all inputs are empty"),
    ],
)
def test_samples_that_prove_nothing(array, message):
    """Inputs without a finite number, or without rows, are refused, since every answer to them would be right."""
    with pytest.raises(SampleError, match=message):
        fit_samples([{"x": array}], [TensorSpec("x", DType.FP32, ("n", 4))], "here")
