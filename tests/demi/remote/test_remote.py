"""Bundles in buckets and on web servers: a local S3 server and a plain web server stand for the real ones."""

from __future__ import annotations

import functools
import hashlib
import http.server
import json
import threading
import time
from pathlib import Path

import fsspec
import httpx
import pytest
from moto.server import ThreadedMotoServer

from demi.bundles.bundle import open_bundle
from demi.bundles.find import bundles_at
from demi.bundles.stamps import cache_folder
from demi.errors import BundleError, DigestError, InputError
from demi.remote.address import Address, models_argument, parse_address
from demi.remote.cache import Cache
from demi.remote.fetch import fetch_models
from demi.remote.place import StorageError
from demi.remote.push import push_models
from tests.server.bundles import GOLDEN_X, MIXED, write_bundle
from tests.server.processes import serving

MEMORY = Address("memory://models", "memory")


@pytest.fixture
def models(tmp_path) -> Path:
    """Two versions of one model."""
    for version in (1, 2):
        write_bundle(tmp_path / f"models/mixed/{version}", MIXED, golden=GOLDEN_X, version=version)
    return tmp_path / "models"


@pytest.fixture
def cache(tmp_path) -> Cache:
    return Cache(tmp_path / "cache")


@pytest.fixture
def bucket():
    """A storage in this process's memory, empty."""
    files = fsspec.filesystem("memory")
    yield files
    files.store.clear()


@pytest.fixture(scope="module")
def s3():
    """An S3 server on a free port, with an empty bucket, and the variables by which clients find it."""
    import boto3

    with pytest.MonkeyPatch.context() as patch:
        server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
        host, port = server.get_host_and_port()
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():
            patch.setenv(name, value)
        boto3.client("s3").create_bucket(Bucket="demi")
        yield boto3.client("s3")
        server.stop()


class TestAddresses:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("s3://bucket/models", Address("s3://bucket/models", "s3")),
            ("s3://bucket/models/", Address("s3://bucket/models", "s3")),
            ("https://host:8443/m/1@sha256:" + "AB" * 32, Address("https://host:8443/m/1", "https", "ab" * 32)),
            ("models", None),
            ("C:/models", None),
        ],
    )
    def test_a_url_with_or_without_a_digest(self, text, expected):
        """Paths of this machine are no addresses."""
        assert expected == parse_address(text)

    @pytest.mark.parametrize(
        "text", ["ftp://host/x", "s3://bucket/a b", "s3://", "s3://b/m@sha256:12", "s3://b/m@md5:12"]
    )
    def test_others_are_refused(self, text):
        """With the forms that are read."""
        with pytest.raises(InputError):
            models_argument(text)


class TestFetch:
    def test_a_folder_of_models(self, models, cache, bucket):
        """Everything that was pushed arrives, digests compared."""
        pushed = push_models(models, MEMORY)
        folder = fetch_models(MEMORY, cache)

        assert [folder / "mixed/1", folder / "mixed/2"] == bundles_at(folder, every_version=True)
        open_bundle(folder / "mixed/2").verify()
        manifest = (models / "mixed/2/manifest.json").read_bytes()
        assert f"memory://models/mixed/2@sha256:{hashlib.sha256(manifest).hexdigest()}" == pushed[1]

    @pytest.mark.parametrize("below", ["", "/mixed", "/mixed/2"])
    def test_a_model_or_one_bundle(self, models, cache, bucket, below):
        """The address may name a folder of models, a model or a version."""
        push_models(models, MEMORY)

        folder = fetch_models(Address(f"memory://models{below}", "memory"), cache)

        assert folder / "mixed/2" in bundles_at(folder, every_version=True)

    def test_a_file_is_downloaded_once(self, models, cache, bucket):
        """Versions share files, and a second fetch reads manifests alone."""
        push_models(models, MEMORY)
        fetch_models(MEMORY, cache)
        blobs = {path.name for path in (cache.folder / "blobs/sha256").iterdir()}
        bucket.rm("/models/mixed/1/model.onnx")
        bucket.rm("/models/mixed/2/model.onnx")

        folder = fetch_models(MEMORY, cache)

        digests = {
            entry.sha256
            for version in (1, 2)
            for entry in open_bundle(folder / f"mixed/{version}").manifest.files.values()
        }
        assert digests == blobs

    def test_new_and_removed_versions(self, models, cache, bucket):
        """The folder is as the bucket is."""
        push_models(models / "mixed/1", MEMORY)
        assert ["1"] == [path.name for path in bundles_at(fetch_models(MEMORY, cache), every_version=True)]
        push_models(models / "mixed/2", MEMORY)
        assert ["1", "2"] == [path.name for path in bundles_at(fetch_models(MEMORY, cache), every_version=True)]
        bucket.rm("/models/mixed/1", recursive=True)
        assert ["2"] == [path.name for path in bundles_at(fetch_models(MEMORY, cache), every_version=True)]

    @pytest.mark.parametrize(
        ("damage", "reason"),
        [
            (lambda data: data[:-1], "bytes instead of"),
            (lambda data: data + b"x", "longer than"),
            (lambda data: bytes([data[0] ^ 1]) + data[1:], "its digest differs"),
        ],
    )
    def test_damage_is_found_and_nothing_stays(self, models, cache, bucket, damage, reason):
        """A file that is cut short, longer or changed."""
        push_models(models / "mixed/1", MEMORY)
        model = "/models/mixed/1/model.onnx"
        bucket.pipe(model, damage(bucket.cat(model)))

        with pytest.raises(DigestError, match=reason):
            fetch_models(MEMORY, cache)

        assert [] == [path for path in cache.folder.rglob("*") if path.is_file() and path.name.startswith(".")]
        assert [] == bundles_at(cache.served(str(MEMORY)), every_version=True)

    def test_a_pinned_bundle(self, models, cache, bucket):
        """Its digest is that of the manifest; any other bundle is refused."""
        (pinned,) = push_models(models / "mixed/1", MEMORY)
        address = parse_address(pinned)
        assert address is not None
        fetch_models(address, cache)

        push_models(models / "mixed/1", MEMORY, force=True)
        fetch_models(address, cache)
        manifest = json.loads(bucket.cat("/models/mixed/1/manifest.json"))
        bucket.pipe("/models/mixed/1/manifest.json", json.dumps(manifest | {"version": 7}).encode())

        with pytest.raises(DigestError, match="not the one that the address names"):
            fetch_models(address, cache)

    @pytest.mark.parametrize("name", ["../../escape.onnx", "/etc/passwd", "a/../../b"])
    def test_a_manifest_cannot_write_elsewhere(self, models, cache, bucket, name):
        """Names of files are checked before anything is downloaded."""
        push_models(models / "mixed/1", MEMORY)
        manifest = json.loads(bucket.cat("/models/mixed/1/manifest.json"))
        manifest["files"][name] = manifest["files"]["model.onnx"]
        bucket.pipe("/models/mixed/1/manifest.json", json.dumps(manifest).encode())

        with pytest.raises(BundleError, match="outside the bundle"):
            fetch_models(MEMORY, cache)

    def test_a_manifest_without_end(self, cache, bucket):
        """Memory is bounded."""
        bucket.pipe("/models/m/1/manifest.json", b" " * (17 << 20))

        with pytest.raises(BundleError, match="larger than"):
            fetch_models(MEMORY, cache)

    def test_nothing_there(self, cache, bucket):
        """An empty bucket is an error that says what to give."""
        with pytest.raises(BundleError, match="no bundle at this address"):
            fetch_models(MEMORY, cache)

    def test_an_old_draft_is_removed(self, models, cache, bucket):
        """A process that died while downloading leaves one."""
        import os

        push_models(models / "mixed/1", MEMORY)
        folder = cache.folder / "blobs/sha256"
        folder.mkdir(parents=True)
        (old := folder / ".x.partial").touch()
        (new := folder / ".y.partial").touch()
        os.utime(old, (0, 0))

        fetch_models(MEMORY, cache)

        assert (False, True) == (old.exists(), new.exists())


class TestPush:
    def test_a_version_is_not_replaced_without_force(self, models, bucket):
        """Somebody may serve it."""
        push_models(models / "mixed/1", MEMORY)

        with pytest.raises(BundleError, match="there already"):
            push_models(models / "mixed/1", MEMORY)

    def test_a_damaged_bundle_stays_here(self, models, bucket):
        """Digests are compared before the first byte leaves."""
        (models / "mixed/1/model.onnx").write_bytes(b"damaged")

        with pytest.raises(DigestError):
            push_models(models / "mixed/1", MEMORY)

        assert not bucket.store


def test_the_cache_is_where_the_variable_says(monkeypatch, tmp_path):
    """DEMI_CACHE, else the user's folder for caches."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert tmp_path / "demi" == cache_folder()
    monkeypatch.setenv("DEMI_CACHE", str(tmp_path / "other"))
    assert tmp_path / "other" == cache_folder()


def test_s3_is_served_and_followed(models, s3, tmp_path, monkeypatch):
    """`demi serve s3://...` answers from a bucket, and takes a version that is pushed later."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    address = Address("s3://demi/served", "s3")
    push_models(models / "mixed/1", address)

    with serving("s3://demi/served", "--watch", "0.2") as process:
        assert ["1"] == httpx.get(f"{process.url}/v2/models/mixed").json()["versions"]
        push_models(models / "mixed/2", address)
        until = time.monotonic() + 60
        while ["1", "2"] != _versions(process.url):
            assert time.monotonic() < until, process.log
            time.sleep(0.1)

    assert process.said("downloading mixed v1")


def _versions(url: str) -> list[str]:
    found: list[str] = httpx.get(f"{url}/v2/models/mixed").json()["versions"]
    return found


def test_a_bucket_that_does_not_exist(s3, cache):
    """The address is named."""
    with pytest.raises((BundleError, StorageError), match=r"s3://nowhere|no bundle"):
        fetch_models(Address("s3://nowhere/models", "s3"), cache)


def test_a_web_server(models, cache):
    """One that lists its folders, as many do."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(models))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        folder = fetch_models(Address(f"http://127.0.0.1:{server.server_port}", "http"), cache)
        one = fetch_models(Address(f"http://127.0.0.1:{server.server_port}/mixed/1", "http"), cache)
        server.shutdown()

    assert ["1", "2"] == [path.name for path in bundles_at(folder, every_version=True)]
    assert ["1"] == [path.name for path in bundles_at(one, every_version=True)]


def test_a_server_that_does_not_answer(cache):
    """The network is named as a cause."""
    with pytest.raises(StorageError, match="cannot be read"):
        fetch_models(Address("http://127.0.0.1:9/models", "http"), cache)
