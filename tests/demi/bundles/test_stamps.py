"""Files of the cache are compared with their digests once, and again after any change."""

from __future__ import annotations

import os
from pathlib import Path

import fsspec
import pytest

from demi.bundles import bundle as bundles
from demi.bundles import stamps as module
from demi.bundles.bundle import open_bundle
from demi.bundles.stamps import Stamps, cache_folder, stamps
from demi.errors import DigestError, InputError
from demi.remote.address import Address
from demi.remote.cache import Cache
from demi.remote.fetch import fetch_models
from demi.remote.push import push_models
from tests.server.bundles import SCALE, write_bundle

ADDRESS = Address("memory://stamped", "memory")


@pytest.fixture
def served(tmp_path, monkeypatch):
    """Return the folder of a downloaded bundle in this machine's cache."""
    monkeypatch.setenv("DEMI_CACHE", str(tmp_path / "cache"))
    push_models(write_bundle(tmp_path / "scale" / "1", SCALE), ADDRESS)
    yield fetch_models(ADDRESS, Cache(cache_folder())) / "scale" / "1"
    fsspec.filesystem("memory").store.clear()


@pytest.fixture
def compared(monkeypatch) -> list[str]:
    """Return the names of the files whose digests are computed from now on."""
    names: list[str] = []
    real = bundles.digest

    def digest(path: Path) -> str:
        names.append(path.name)
        return real(path)

    monkeypatch.setattr(bundles, "digest", digest)
    return names


def test_a_downloaded_file_is_not_compared_again(served, compared):
    """The download has compared it."""
    open_bundle(served)

    assert [] == compared


def test_other_bundles_are_compared_every_time(tmp_path, compared):
    """Nothing is recorded about them."""
    folder = write_bundle(tmp_path / "b", SCALE)
    compared.clear()
    for _ in range(2):
        open_bundle(folder)

    assert ["model.onnx", "model.onnx"] == compared


def test_a_changed_file_is_found(served):
    """Even with the size and the time of before."""
    model = served / "model.onnx"
    data, status = bytearray(model.read_bytes()), model.stat()
    data[-1] ^= 1
    model.chmod(0o644)
    model.write_bytes(data)
    os.utime(model, ns=(status.st_atime_ns, status.st_mtime_ns))

    with pytest.raises(DigestError, match="its digest differs"):
        open_bundle(served)


def test_a_replaced_file_is_found(served):
    """Another file under the name, as old and as large."""
    model = served / "model.onnx"
    data, status = bytearray(model.read_bytes()), model.stat()
    data[0] ^= 1
    model.unlink()
    model.write_bytes(data)
    os.utime(model, ns=(status.st_atime_ns, status.st_mtime_ns))

    with pytest.raises(DigestError, match="its digest differs"):
        open_bundle(served)


def test_a_file_with_a_new_link_is_compared_once_more(served, compared, tmp_path):
    """Links change the time of a file, as writes do; afterwards the stamp holds again."""
    os.link(served / "model.onnx", tmp_path / "link")
    open_bundle(served)
    first = list(compared)
    open_bundle(served)

    assert ["model.onnx"] == first == compared


def test_a_version_that_shares_files_leaves_the_stamps_valid(served, compared, tmp_path):
    """The download of another version links to the same files, and takes that into account."""
    push_models(write_bundle(tmp_path / "scale" / "2", SCALE, version=2), ADDRESS)
    folder = fetch_models(ADDRESS, Cache(cache_folder()))
    compared.clear()
    for version in (1, 2):
        open_bundle(folder / "scale" / str(version))

    assert [] == compared
    assert (folder / "scale/1/model.onnx").samefile(folder / "scale/2/model.onnx")


def test_a_stamp_of_another_user_is_ignored(served, compared, monkeypatch):
    """It may say anything."""
    monkeypatch.setattr(module.os, "geteuid", lambda: os.getuid() + 1)
    open_bundle(served)

    assert ["model.onnx"] == compared


def test_a_damaged_stamp_is_ignored(served, compared):
    """As if there were none."""
    for path in (cache_folder() / "verified").iterdir():
        path.write_text("{")
    open_bundle(served)

    assert ["model.onnx"] == compared


def test_a_user_without_a_home_folder(monkeypatch, tmp_path):
    """Bundles are compared as ever; a download says which variable names a folder."""
    monkeypatch.setattr(module.Path, "expanduser", lambda self: (_ for _ in ()).throw(RuntimeError("no home")))
    found = stamps()
    with pytest.raises(InputError, match="no home folder"):
        cache_folder()

    assert isinstance(found, Stamps)
    assert not found.is_valid("0" * 64, tmp_path)
