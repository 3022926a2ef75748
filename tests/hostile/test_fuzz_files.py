"""Fuzz of a bundle's files: damaged manifests and archives raise errors of our own.

DEMI_FUZZ_EXAMPLES asks for more examples of each, for minutes or a night.
"""

import contextlib
import io
import os
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from demi.accuracy.budget import Budget
from demi.bundles import manifest as manifests
from demi.bundles.manifest import BatchSpec, FileEntry, Manifest, Provenance
from demi.calibration.profile import read_profile
from demi.calibration.samples import load_arrays
from demi.errors import DemiError
from demi.exporter.planning.costs import read_costs
from demi.plan import read_plan
from demi.tensors import DType, TensorSpec

fuzz = settings(
    max_examples=int(os.environ.get("DEMI_FUZZ_EXAMPLES", "200")),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)

MANIFEST = Manifest(
    schema=manifests.SCHEMA,
    name="tiny",
    version=1,
    precision="fp16",
    inputs=(TensorSpec("x", DType.FP32, ("batch", 4)),),
    outputs=(TensorSpec("y", DType.FP32, ("batch", 2)),),
    batch=BatchSpec(free=False, why_not="nothing was tried"),
    budget=Budget(),
    provenance=Provenance("2026-01-01T00:00:00Z", "tiny.onnx", "0" * 64, {}, "drawn"),
    files={manifests.MODEL: FileEntry(10, "0" * 64)},
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


def archive() -> bytes:
    """Return an intact .npz."""
    file = io.BytesIO()
    np.savez_compressed(file, x=np.arange(12, dtype=np.float32).reshape(3, 4), ids=np.arange(3))
    return file.getvalue()


def damaged(data: bytes, changes: list[tuple[int, int]], cut: int) -> bytes:
    """Return the bytes with some of them changed, and possibly truncated."""
    found = bytearray(data)
    for place, value in changes:
        found[place % len(found)] = value
    return bytes(found[: len(found) - cut % len(found)])


def refused_or_read(data: bytes) -> None:
    """Decode a manifest; only our own errors are allowed."""
    with contextlib.suppress(DemiError):
        assert isinstance(manifests.decode(data, "manifest.json"), Manifest)


def test_the_manifest_is_valid():
    """The manifest that the fuzz damages is valid."""
    assert MANIFEST == manifests.decode(manifests.encode(MANIFEST), "manifest.json")


@fuzz
@given(st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=6), st.integers(0, 10_000))
def test_damaged_manifests(changes, cut):
    """Any bytes of the manifest may be changed."""
    refused_or_read(damaged(manifests.encode(MANIFEST), changes, cut))


@fuzz
@given(st.sampled_from(sorted(msgspec.to_builtins(MANIFEST))), JSON)
def test_fields_of_other_kinds(field, value):
    """Any field may hold any JSON value."""
    refused_or_read(msgspec.json.encode(msgspec.to_builtins(MANIFEST) | {field: value}))


@fuzz
@given(st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=6), st.integers(0, 10_000))
def test_damaged_archives(tmp_path: Path, changes, cut):
    """Any bytes of an archive may be changed, also in its directory and headers."""
    path = tmp_path / "x.npz"
    path.write_bytes(damaged(archive(), changes, cut))
    with contextlib.suppress(DemiError):
        assert all(isinstance(array, np.ndarray) for feeds in load_arrays(path) for array in feeds.values())


def test_the_archive_is_valid(tmp_path: Path):
    """The archive that the fuzz damages is valid."""
    (tmp_path / "x.npz").write_bytes(archive())

    assert [{"x", "ids"}] == [set(feeds) for feeds in load_arrays(tmp_path / "x.npz")]


@pytest.mark.parametrize("data", [b"", b"[]", b"null", b"{}", b'{"schema": 1}', b"[" * 100_000])
def test_arbitrary_bytes_as_a_manifest(data):
    """Arbitrary bytes as a manifest are refused."""
    with pytest.raises(DemiError):
        manifests.decode(data, "manifest.json")


@pytest.mark.parametrize("read", [read_plan, read_profile, read_costs], ids=["plan", "ranges", "costs"])
def test_text_that_is_not_unicode(read, tmp_path: Path):
    """JSON files whose texts are not UTF-8 are refused like other damage."""
    (tmp_path / "x.json").write_bytes(b'{"schema": "\xff\xfe", "a": "\x80"}')

    with pytest.raises(DemiError):
        read(tmp_path / "x.json")
