"""`demi push` and `demi pull`: bundles travel through a storage and arrive as they were."""

from __future__ import annotations

import pytest

from demi.bundles.bundle import open_bundle
from tests.server.bundles import MIXED, write_bundle


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DEMI_CACHE", str(tmp_path / "cache"))


def test_there_and_back(demi, tmp_path):
    """The address that push prints is one that pull takes."""
    write_bundle(tmp_path / "models/mixed/1", MIXED)
    code, out, _ = demi("push", "models", f"file://{tmp_path}/bucket")
    assert 0 == code
    address = out.strip()
    assert address.startswith(f"file://{tmp_path}/bucket/mixed/1@sha256:")

    code, out, _ = demi("pull", address, "-o", "here")

    assert (0, "here/mixed/1") == (code, out.strip())
    open_bundle(tmp_path / "here/mixed/1").verify()
    assert (tmp_path / "here/mixed/1/model.onnx").stat().st_mode & 0o200


def test_a_version_that_is_here_is_kept(demi, tmp_path):
    """Unless --force is given."""
    write_bundle(tmp_path / "models/mixed/1", MIXED)
    demi("push", "models", f"file://{tmp_path}/bucket")

    code, _, err = demi("pull", f"file://{tmp_path}/bucket")

    assert 2 == code
    assert "--force" in err
    assert 0 == demi("pull", f"file://{tmp_path}/bucket", "--force")[0]


@pytest.mark.parametrize("address", ["models", "https://host/models", "s3://b/m@sha256:" + "0" * 64])
def test_what_is_not_a_bucket(demi, tmp_path, address):
    """A web server takes no uploads, and nobody knows the digest of what is still to come."""
    write_bundle(tmp_path / "models/mixed/1", MIXED)

    code, _, err = demi("push", "models", address)

    assert 2 == code
    assert "is not a place that bundles can be copied to" in err
