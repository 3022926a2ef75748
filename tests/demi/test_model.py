"""`demi.load`: a bundle as a function of arrays."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import demi
from demi.errors import BundleError, DeviceError, DigestError, InputError, TensorError
from tests.server.bundles import GOLDEN_X, HALF, MIXED, SCALE, write_bundle


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """Return a bundle of `y = x * (2, 3, 4)` with its reference."""
    return write_bundle(
        tmp_path_factory.mktemp("models") / "scale/1", MIXED, reference=SCALE, golden=GOLDEN_X, name="scale"
    )


@pytest.fixture(scope="module")
def model(path):
    """Return the bundle's model, loaded as it would be served."""
    with demi.load(path) as model:
        yield model


def test_a_call_by_input_names(model):
    """Keyword arguments are inputs; lists are arrays."""
    assert [[2, 6, 12]] == model(x=[[1.0, 2.0, 3.0]])["y"].tolist()


def test_wider_floats_are_cast(model):
    """float64, NumPy's default, is cast to the model's float32."""
    assert np.float32 == model.run({"x": np.ones((2, 3))})["y"].dtype


def test_whole_numbers_of_a_list_are_floats(model):
    """Integers in a list become floats; an integer array is refused."""
    assert [[2, 6, 12]] == model(x=[[1, 2, 3]])["y"].tolist()
    with pytest.raises(TensorError, match="`x`"):
        model(x=np.array([[1, 2, 3]]))


def test_named_outputs_alone(model):
    """`run` returns only the requested outputs."""
    assert ["y"] == list(model.run({"x": np.ones((1, 3), np.float32)}, ["y"]))


def test_properties(model, path):
    """A model has name, version, folder, device, inputs and outputs."""
    assert ("scale", 1, path, "cpu") == (model.name, model.version, model.path, model.device)
    assert ["x"] == [spec.name for spec in model.inputs]
    assert ["y"] == [spec.name for spec in model.outputs]
    assert "Model('scale', version=1" in repr(model)


def test_the_newest_version_of_a_folder(path):
    """A model's folder stands for its newest version."""
    with demi.load(path.parent) as model:
        assert 1 == model.version


def test_the_reference(path):
    """`fp32` is the bundle's own FP32 model."""
    with demi.load(path, precision="fp32", threads=1) as model:
        assert "fp32" == model.precision
        assert [[2, 6, 12]] == model(x=[[1, 2, 3]])["y"].tolist()


def test_several_threads(model):
    """Each thread gets its own outputs."""
    with ThreadPoolExecutor(4) as pool:
        answers = pool.map(lambda n: model(x=[[n, n, n]])["y"].tolist(), range(1, 33))

    assert [[[2 * n, 3 * n, 4 * n]] for n in range(1, 33)] == list(answers)


@pytest.mark.parametrize(
    ("feeds", "error", "words"),
    [
        ({"z": [[1.0, 2, 3]]}, TensorError, "unknown input `z`"),
        ({}, TensorError, "input `x` is missing"),
        ({"x": [[1.0, 2]]}, TensorError, "`x`"),
        ({"x": [[1.0], [2.0, 3.0]]}, InputError, "input `x` is not an array"),
        ([1.0], InputError, "`feeds` is a list"),
    ],
)
def test_inputs_that_do_not_fit(model, feeds, error, words):
    """The error names the input."""
    with pytest.raises(error, match=words):
        model.run(feeds)


def test_an_output_that_does_not_exist(model):
    """The error lists those that do."""
    with pytest.raises(InputError, match="has no output `z`") as caught:
        model.run({"x": [[1.0, 2, 3]]}, ["z"])
    assert "y" in caught.value.hint


def test_a_closed_model(path):
    """A run after `close` says so."""
    model = demi.load(path)
    model.close()

    with pytest.raises(InputError, match="was closed"):
        model(x=[[1.0, 2, 3]])


@pytest.mark.parametrize(
    ("precision", "expected"), [("half", ("fp16-in-fp32", "")), ("auto", ("fp32", "the FP32 reference serves: "))]
)
def test_half_on_a_cpu(path, precision, expected):
    """On a CPU without half kernels FP32 runs, and `note` says so; half can be forced."""
    with demi.load(path, runtime="onnxruntime", precision=precision) as model:
        assert expected == (model.precision, model.note.partition("ONNX")[0])


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"device": "tpu"}, InputError, "unknown device `tpu`"),
        ({"device": "cuda:7"}, DeviceError, "cuda"),
        ({"precision": "int8"}, InputError, "unknown precision `int8`"),
        ({"runtime": "tensorflow"}, InputError, "unknown runtime `tensorflow`"),
        ({"threads": "2"}, InputError, "`threads` is a str"),
    ],
)
def test_options_that_do_not_exist(path, options, error, words):
    """The error names the option."""
    with pytest.raises(error, match=words):
        demi.load(path, **options)


def test_no_bundle(tmp_path):
    """A missing path raises an error."""
    with pytest.raises(BundleError, match="no such bundle"):
        demi.load(tmp_path / "none")


def test_a_damaged_bundle(tmp_path):
    """A changed byte is found before the model is opened."""
    folder = write_bundle(tmp_path / "m/1", MIXED, golden=GOLDEN_X)
    with (folder / "model.onnx").open("r+b") as file:
        file.write(b"x")

    with pytest.raises(DigestError, match=r"`model\.onnx`"):
        demi.load(folder)


def test_no_reference(tmp_path):
    """A bundle without its FP32 model cannot be loaded in FP32."""
    folder = write_bundle(tmp_path / "m/1", HALF)

    with pytest.raises(BundleError, match="no FP32 reference"):
        demi.load(folder, precision="fp32")
