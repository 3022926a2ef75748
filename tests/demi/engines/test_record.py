"""Engines beside a bundle: only one that was built here, from this model, for this GPU, is loaded."""

from __future__ import annotations

import os
import shutil
import stat
from dataclasses import replace

import pytest

from demi.bundles.bundle import open_bundle
from demi.engines import record as engine_records
from demi.engines.key import KEY_BYTES, is_sealed, key_path, make_key, read_key, seal_of
from demi.engines.record import EngineRecord, ShapeRange, misfit, read_engine, write_engine
from demi.errors import BundleError, InputError
from demi.runtime.cuda.bindings import Gpu
from tests.demi.bundles.making import make_bundle

KEY = bytes(range(32))
H100 = Gpu("NVIDIA H100", (9, 0), (13, 0), 80 << 30)
RECORD = EngineRecord(
    schema=1,
    created="2026-11-24T00:00:00+00:00",
    tensorrt="11.4.0.106",
    gpu="NVIDIA H100",
    capability=(9, 0),
    driver_cuda=(13, 0),
    shapes={"x": ShapeRange((1, 3), (8, 3), (16, 3)), "k": ShapeRange((1,), (8,), (12,))},
    model_sha256="",
    engine_sha256="",
    engine_bytes=0,
)


@pytest.fixture
def bundle(tmp_path):
    """Return a bundle without an engine."""
    return open_bundle(make_bundle(tmp_path / "m"))


def with_engine(bundle, key=KEY, **changes):
    """Return the same bundle with an engine of its model."""
    record = replace(RECORD, model_sha256=bundle.manifest.files["model.onnx"].sha256, **changes)
    write_engine(bundle, record, b"the plan", key)
    return bundle


class TestReading:
    """Reading engines, and refusing them."""

    def test_round_trip(self, bundle):
        """The bytes, the record and the most rows of every input are read as written."""
        found = read_engine(with_engine(bundle), KEY)

        assert (b"the plan", "11.4.0.106", 12) == (found.serialized, found.record.tensorrt, found.max_rows)

    def test_a_bundle_without_an_engine(self, bundle):
        """A bundle without an engine returns None."""
        assert read_engine(bundle, KEY) is None

    def test_the_bundle_is_unchanged(self, bundle):
        """A bundle verifies with and without an engine, since an engine belongs to the machine."""
        with_engine(bundle).verify()

    @pytest.mark.parametrize("key", [None, bytes(32)], ids=["none", "another"])
    def test_an_engine_from_elsewhere(self, bundle, key):
        """An engine from another machine is refused, because it does not have this machine's seal."""
        with pytest.raises(BundleError, match="was not built here") as caught:
            read_engine(with_engine(bundle), key)
        assert f"demi export --tensorrt {bundle.path}" in caught.value.hint

    def test_a_changed_record(self, bundle):
        """The seal covers every field."""
        path = with_engine(bundle).path / engine_records.FOLDER / engine_records.RECORD
        path.write_text(path.read_text().replace("11.4.0", "11.4.1"))
        with pytest.raises(BundleError, match="was not built here"):
            read_engine(bundle, KEY)

    def test_a_changed_engine(self, bundle):
        """The sealed record contains the digest of the engine."""
        (with_engine(bundle).path / engine_records.FOLDER / engine_records.ENGINE).write_bytes(b"the plaN")
        with pytest.raises(BundleError, match="its digest differs"):
            read_engine(bundle, KEY)

    def test_an_engine_of_another_model(self, tmp_path, bundle):
        """A sealed engine that was moved beside another model is refused."""
        with_engine(bundle)
        other = open_bundle(make_bundle(tmp_path / "other", model=b"another model"))
        shutil.copytree(bundle.path / engine_records.FOLDER, other.path / engine_records.FOLDER)
        with pytest.raises(BundleError, match=r"built from another model\.onnx"):
            read_engine(other, KEY)

    @pytest.mark.parametrize("text", ["", "{", '{"schema": 1}', "[]", "[" * 10000], ids=range(5))
    def test_a_damaged_record(self, bundle, text):
        """Damaged JSON raises BundleError."""
        (with_engine(bundle).path / engine_records.FOLDER / engine_records.RECORD).write_text(text)
        with pytest.raises(BundleError, match=r"engine\.json"):
            read_engine(bundle, KEY)

    def test_a_record_without_its_engine(self, bundle):
        """A record without its engine raises an error."""
        (with_engine(bundle).path / engine_records.FOLDER / engine_records.ENGINE).unlink()
        with pytest.raises(BundleError, match="cannot be read"):
            read_engine(bundle, KEY)

    def test_a_record_that_cannot_be_read(self, bundle):
        """An unreadable record is reported as an engine that cannot be used, while the bundle can still be served."""
        path = with_engine(bundle).path / engine_records.FOLDER / engine_records.RECORD
        path.unlink()
        path.mkdir()
        with pytest.raises(BundleError, match="record cannot be read"):
            read_engine(bundle, KEY)

    def test_files_are_their_owners(self, bundle):
        """Only the owner can write an engine that Demi wrote, the server's user can read it, and no draft is left."""
        folder = with_engine(bundle).path / engine_records.FOLDER

        assert {"engine.json": 0o644, "model.engine": 0o644} == {
            path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()
        }


class TestMisfit:
    """Reasons that an engine does not fit this TensorRT or this GPU."""

    def test_where_it_was_built(self):
        """An engine fits where it was built."""
        assert misfit(RECORD, "11.4.0.106", H100) is None

    @pytest.mark.parametrize(
        ("changes", "version", "fits"),
        [
            ({}, "11.4.0.107", False),
            ({"version_compatible": True}, "11.5.0.1", True),
            ({"version_compatible": True}, "11.3.0.1", False),
            ({"version_compatible": True}, "12.0.0.1", False),
            ({"version_compatible": True, "tensorrt": "10.16.1.11"}, "11.4.0.106", True),
        ],
    )
    def test_versions(self, changes, version, fits):
        """An engine fits its own version of TensorRT, or newer ones if it was built version-compatible."""
        assert fits is (misfit(replace(RECORD, **changes), version, H100) is None)

    @pytest.mark.parametrize(
        ("hardware", "gpu", "fits"),
        [
            ("none", replace(H100, name="NVIDIA H200"), False),
            ("same-compute-capability", replace(H100, name="NVIDIA H200"), True),
            ("same-compute-capability", replace(H100, capability=(8, 9)), False),
            ("ampere+", replace(H100, capability=(8, 0)), True),
            ("ampere+", replace(H100, capability=(7, 5)), False),
        ],
    )
    def test_gpus(self, hardware, gpu, fits):
        """An engine fits the GPU that it was built on, or those it was built for as well; the reason names both."""
        why = misfit(replace(RECORD, hardware=hardware), "11.4.0.106", gpu)

        assert fits is (why is None)
        assert why is None or "NVIDIA H100" in why


class TestKey:
    """The key that never leaves a machine."""

    def test_the_key_is_created_once(self, tmp_path):
        """The key is random, stored, and readable only by its owner."""
        path = tmp_path / "deep" / "engine.key"
        key = make_key(path)

        assert key == make_key(path) == read_key(path)
        assert key != make_key(tmp_path / "other.key")
        assert (KEY_BYTES, 0o600) == (len(key), stat.S_IMODE(path.stat().st_mode))

    def test_its_creation_is_logged(self, tmp_path, caplog):
        """A file outside of the bundle is not written without a word, and only the first use writes it."""
        caplog.set_level("INFO", "demi.runtime")
        make_key(tmp_path / "engine.key")
        make_key(tmp_path / "engine.key")

        (line,) = caplog.messages
        assert str(tmp_path / "engine.key") in line

    def test_no_key(self, tmp_path):
        """Without a key no engine was sealed here."""
        assert read_key(tmp_path / "engine.key") is None

    @pytest.mark.parametrize("mode", [0o604, 0o602, 0o620, 0o666])
    def test_a_key_that_is_not_secret(self, tmp_path, mode):
        """A key that others can read or write is refused."""
        make_key(tmp_path / "engine.key")
        os.chmod(tmp_path / "engine.key", mode)
        with pytest.raises(InputError, match="not secret") as caught:
            read_key(tmp_path / "engine.key")
        assert "chmod 600" in caught.value.hint

    def test_a_key_of_a_group(self, tmp_path):
        """A key mounted with read access for a group is accepted."""
        make_key(tmp_path / "engine.key")
        os.chmod(tmp_path / "engine.key", 0o440)

        assert read_key(tmp_path / "engine.key")

    def test_a_short_key(self, tmp_path):
        """An empty file is not a key."""
        (tmp_path / "engine.key").touch(0o600)
        with pytest.raises(InputError, match="too short"):
            read_key(tmp_path / "engine.key")

    def test_where_it_is(self, tmp_path):
        """The key's path is set by the environment, or lies in the user's configuration folder."""
        assert tmp_path == key_path({"DEMI_ENGINE_KEY": str(tmp_path)})
        assert "~/.config/demi/engine.key" == str(key_path({}))

    def test_seals_hold_for_these_bytes_and_this_key(self):
        """A seal is valid only for its bytes and its key."""
        assert is_sealed(b"x", seal_of(b"x", KEY), KEY)
        assert not is_sealed(b"y", seal_of(b"x", KEY), KEY)
        assert not is_sealed(b"x", seal_of(b"x", bytes(32)), KEY)
        assert not is_sealed(b"x", "", KEY)
