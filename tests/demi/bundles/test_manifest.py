"""The manifest is read strictly, like any untrusted input."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from demi.accuracy.budget import Budget, Limits
from demi.bundles.manifest import (
    BatchSpec,
    FileEntry,
    Manifest,
    Provenance,
    check_model_name,
    decode,
    encode,
    name_of_file,
)
from demi.errors import BundleError
from demi.tensors import DType, TensorSpec

MANIFEST = Manifest(
    schema=1,
    name="minilm",
    version=3,
    precision="fp16",
    inputs=(TensorSpec("ids", DType.INT64, ("batch", "seq")),),
    outputs=(TensorSpec("y", DType.FP32, ("batch", 384)),),
    batch=BatchSpec(free=True, max_size=16),
    budget=Budget(Limits(relative_l2=0.01), {"y": Limits(cosine=0.999)}),
    provenance=Provenance("2025-01-01T00:00:00+00:00", "minilm.pt2", "00" * 32, {"demi": "0.1.0"}, "drawn (seed 0)"),
    files={"model.onnx": FileEntry(7, "ab" * 32)},
)


def changed(**fields):
    """Return the manifest's JSON with other fields."""
    return msgspec.json.encode(msgspec.json.decode(encode(MANIFEST)) | fields)


def test_round_trip():
    """A manifest is read as it was written."""
    assert MANIFEST == decode(encode(MANIFEST), "here")


def test_file_is_indented_json():
    """A manifest is indented JSON that ends with a newline, so that people can read it."""
    assert encode(MANIFEST).startswith(b'{\n  "schema": 1,\n  "name": "minilm",')
    assert encode(MANIFEST).endswith(b"}\n")


def test_reference_is_known_by_its_file():
    """A bundle has a reference if its manifest lists one."""
    listed = decode(
        changed(files={name: {"bytes": 1, "sha256": "0" * 64} for name in ("model.onnx", "reference.onnx")}), "here"
    )

    assert not MANIFEST.has_reference
    assert listed.has_reference


@pytest.mark.parametrize(
    "data", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"not json"], ids=["empty", "cut", "bytes", "deep", "text"]
)
def test_bytes_that_are_not_json(data):
    """The error of bytes that are not JSON has their position."""
    with pytest.raises(BundleError, match="not valid JSON") as caught:
        decode(data, "models/minilm/3")
    assert "models/minilm/3" == caught.value.where


@pytest.mark.parametrize("schema", [0, 2, "1", None])
def test_unknown_schema(schema):
    """A manifest with another schema number is refused, whatever its other fields."""
    with pytest.raises(BundleError, match="this Demi reads schema 1"):
        decode(changed(schema=schema), "here")


@pytest.mark.parametrize("data", [b"[]", b"1", b"null", b"{}"])
def test_json_without_a_schema(data):
    """JSON that is not a manifest has no schema."""
    with pytest.raises(BundleError, match="schema None"):
        decode(data, "here")


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"extra": 1}, r"\$\.extra"),
        ({"batch": {"free": True, "max": 1}}, r"\$\.batch\.max"),
        ({"inputs": [{"name": "x", "dtype": "FP32", "shape": [], "unit": "m"}]}, r"\$\.inputs\[0\]\.unit"),
        ({"budget": {"default": {"mse": 1.0}, "outputs": {}}}, r"\$\.budget\.default\.mse"),
    ],
)
def test_unknown_field(fields, path):
    """An unknown field is refused, and its path is named."""
    with pytest.raises(BundleError, match=f"unknown field: {path}"):
        decode(changed(**fields), "here")


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"version": "3"}, r"\$\.version"),
        ({"version": 0}, r"\$\.version"),
        ({"precision": "fp8"}, r"\$\.precision"),
        ({"batch": {"free": True, "max_size": 0}}, r"\$\.batch\.max_size"),
        ({"inputs": [{"name": "x", "dtype": "FP99", "shape": []}]}, r"\$\.inputs\[0\]\.dtype"),
        ({"files": {"model.onnx": {"bytes": -1, "sha256": "0" * 64}}}, r"\$\.files"),
        ({"provenance": None}, r"\$\.provenance"),
    ],
)
def test_field_of_another_kind(fields, path):
    """A field of another type, or beyond its range, is named."""
    with pytest.raises(BundleError, match="the manifest is not valid.*" + path):
        decode(changed(**fields), "here")


@pytest.mark.parametrize(
    "field",
    [name for name in Manifest.__slots__ if name not in ("schema", "files", "input_ranges", "varying", "rescaled")],
)
def test_missing_field(field):
    """Every field is required except the list of files and those that older bundles lack."""
    document = msgspec.json.decode(encode(MANIFEST))
    del document[field]
    with pytest.raises(BundleError, match=f"missing required field `{field}`"):
        decode(msgspec.json.encode(document), "here")


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../b", "..", "", "a//b", "./a", "a\\b", "a/"])
def test_evil_file_name(name):
    """A manifest may only name plain files below its own folder."""
    entry = {"bytes": 1, "sha256": "0" * 64}
    with pytest.raises(BundleError, match="outside the bundle"):
        decode(changed(files={"model.onnx": entry, name: entry}), "here")


def test_file_in_a_folder_of_the_bundle():
    """Engines are in a folder of the bundle."""
    entry = {"bytes": 1, "sha256": "0" * 64}

    assert "engine/a.plan" in decode(changed(files={"model.onnx": entry, "engine/a.plan": entry}), "here").files


def test_manifest_without_a_model():
    """A manifest must list `model.onnx`."""
    with pytest.raises(BundleError, match=r"does not list `model\.onnx`"):
        decode(changed(files={}), "here")


@pytest.mark.parametrize("name", ["minilm", "a", "0", "a.b_c-d", "x" * 128])
def test_good_model_name(name):
    """A name that is valid as a folder and URL segment is returned."""
    assert name == check_model_name(name)


@pytest.mark.parametrize("name", ["", ".", "..", ".a", "-a", "a/b", "a b", "ä", "x" * 129, "a\n", "a\0"])
def test_bad_model_name(name):
    """Any other name is refused."""
    with pytest.raises(BundleError, match="cannot be a model name"):
        check_model_name(name)


def test_bad_model_name_in_a_manifest():
    """The name in a manifest is checked, too."""
    with pytest.raises(BundleError, match=r"`\.\./x` cannot be a model name"):
        decode(changed(name="../x"), "here")


@given(st.binary(max_size=200) | st.integers(0, 300).map(lambda cut: encode(MANIFEST)[:cut]))
def test_any_other_bytes_are_a_bundle_error(data):
    """Any bytes raise BundleError and no other exception."""
    with pytest.raises(BundleError):
        decode(data, "here")


@pytest.mark.parametrize(
    ("stem", "name"),
    [
        ("my model (1)", "my-model-1"),
        ("resnet50.v2", "resnet50.v2"),
        ("a+b=c", "a-b-c"),
        ("_hidden", "hidden"),
        ("модель", "модель"),
        ("模型 v2", "模型 v2"),
    ],
)
def test_the_name_of_a_file(stem, name):
    """Spaces and punctuation become dashes; a name in other letters is not shortened to its remaining ASCII letters."""
    assert name == name_of_file(stem)
