"""Evaluation data: read, cut into batches, and refused if it does not fit."""

import dataclasses

import numpy as np
import pytest

from demi.accuracy.budget import Budget
from demi.bundles.manifest import BatchSpec, Manifest, Provenance
from demi.calibration.gate.data import BATCH_ROWS, batches, data_of, digest_of, read_data
from demi.errors import SampleError
from demi.tensors import DType, TensorSpec


def manifest(first="batch", output_first=None):
    """A manifest whose input `x` has rows of two numbers."""
    inputs = (TensorSpec("x", DType.FP32, (first, 2)),)
    outputs = (TensorSpec("y", DType.FP32, (output_first or first, 3)),)
    provenance = Provenance("", "", "", {}, "")
    return Manifest(1, "tiny", 1, "fp16", inputs, outputs, BatchSpec(free=True), Budget(), provenance)


def cut(data, described=None):
    """Return the batches of data for a model."""
    described = described or manifest()
    return list(batches(data, described, described.inputs))


def rows(count):
    """Return inputs of this many samples."""
    return np.arange(2.0 * count, dtype=np.float32).reshape(count, 2)


class TestBatches:
    """Batches of limited size that hold every sample."""

    def test_a_free_batch(self):
        """A free batch axis gets batches of at most `BATCH_ROWS` rows, with their labels."""
        count = 2 * BATCH_ROWS + 5
        found = cut(data_of({"x": rows(count), "labels": np.arange(count)}, "labels"))

        assert [BATCH_ROWS, BATCH_ROWS, 5] == [batch.samples for batch in found]
        assert np.array_equal(rows(count), np.concatenate([batch.feeds["x"] for batch in found]))
        assert list(range(count)) == [label for batch in found for label in batch.labels]

    def test_a_fixed_batch(self):
        """A model with a fixed batch of two gets two rows at a time."""
        assert [2, 2, 2] == [batch.samples for batch in cut(data_of({"x": rows(6)}), manifest(2))]

    def test_a_fixed_batch_that_is_not_full(self):
        """Rows that do not fill a fixed batch raise an error."""
        with pytest.raises(SampleError, match="5 samples do not fill batches of 2"):
            cut(data_of({"x": rows(5)}), manifest(2))

    def test_no_batch_axis(self):
        """If the first axis is not a batch axis, a set of inputs is one sample."""
        found = cut(data_of({"x": rows(5), "labels": np.array([1])}, "labels"), manifest("n", "m"))

        assert [1] == [batch.samples for batch in found]

    def test_arrays_that_no_input_needs(self):
        """Arrays that no input needs are left out."""
        assert ["x"] == list(cut(data_of({"x": rows(1), "notes": np.zeros(7)}))[0].feeds)

    def test_several_files(self, tmp_path):
        """The files of a folder are read one after another, each with its labels."""
        for index in (1, 2):
            np.savez(tmp_path / f"{index}.npz", x=rows(index), labels=np.full(index, index))
        found = cut(read_data(str(tmp_path), "labels"))

        assert [[1], [2, 2]] == [batch.labels.tolist() for batch in found]


class TestRefused:
    """Data that does not fit raises an error that names its origin."""

    def test_labels_of_another_length(self):
        """There must be one label for each sample."""
        with pytest.raises(SampleError, match="3 labels for 4 samples"):
            cut(data_of({"x": rows(4), "labels": np.arange(3)}, "labels"))

    def test_a_single_label(self):
        """A number is not an array of labels."""
        with pytest.raises(SampleError, match="1 labels for 4 samples"):
            cut(data_of({"x": rows(4), "labels": np.array(3)}, "labels"))

    def test_no_such_labels(self):
        """The error names the arrays in the file."""
        with pytest.raises(SampleError, match=r"no array `y` with the labels[\s\S]*there is x"):
            data_of({"x": rows(4)}, "y")

    def test_labels_without_a_batch(self):
        """Several labels cannot belong to a single sample."""
        with pytest.raises(SampleError, match=r"labels of shape \[5\] for a set that is one sample"):
            cut(data_of({"x": rows(5), "labels": np.arange(5)}, "labels"), manifest("n", "m"))

    def test_inputs_of_different_lengths(self):
        """The error names each input with its length."""
        described = manifest()
        inputs = (*described.inputs, TensorSpec("m", DType.FP32, ("batch", 2)))
        with pytest.raises(SampleError, match="`x` 4, `m` 3"):
            list(batches(data_of({"x": rows(4), "m": rows(3)}), described, inputs))

    @pytest.mark.parametrize(
        ("arrays", "message"),
        [
            ({"x": rows(0)}, "there are no samples"),
            ({"z": rows(2)}, "input `x` is missing"),
            ({"x": np.float32(1)}, "input `x` has shape"),
        ],
    )
    def test_empty_data(self, arrays, message):
        """Data without rows, inputs or axes raises an error."""
        with pytest.raises(SampleError, match=message):
            cut(data_of(arrays))

    def test_a_model_without_inputs(self):
        """There is nothing to measure it on."""
        described = dataclasses.replace(manifest(2), inputs=())
        with pytest.raises(SampleError, match="the model has no inputs"):
            cut(data_of({}), described)

    def test_another_shape(self):
        """An input of another shape is named."""
        with pytest.raises(SampleError, match="input `x` has shape"):
            cut(data_of({"x": np.zeros((4, 3), np.float32)}))


def test_the_digest_tells_samples_apart():
    """The digest depends on values, names, types and labels, but not on the order of names."""
    a, b = rows(2), rows(2) + 1
    digests = {
        digest_of([{"x": a}]),
        digest_of([{"x": b}]),
        digest_of([{"z": a}]),
        digest_of([{"x": a.astype(np.float64)}]),
        digest_of([{"x": a}], [np.arange(2)]),
        digest_of([{"x": np.array(["a", "b"], dtype=object)}]),
    }

    assert 6 == len(digests)
    assert digest_of([{"x": a, "z": b}]) == digest_of([{"z": b, "x": a}])
