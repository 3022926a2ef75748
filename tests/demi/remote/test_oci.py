"""Bundles in OCI registries: pushed, pulled by tag or digest, and what a registry may not do."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from demi.bundles.bundle import open_bundle
from demi.bundles.find import bundles_at
from demi.errors import BundleError, DigestError, InputError
from demi.remote.address import Address, parse_address
from demi.remote.cache import Cache
from demi.remote.fetch import fetch_models
from demi.remote.oci import ARTIFACT, TITLE
from demi.remote.place import StorageError
from demi.remote.push import push_models
from tests.demi.remote.registry import Registry, digest, registry
from tests.server.bundles import GOLDEN_X, MIXED, write_bundle
from tests.server.processes import serving


@pytest.fixture(autouse=True)
def no_credentials(tmp_path, monkeypatch):
    """Keep the developer's own credentials out of the tests."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("DOCKER_CONFIG", raising=False)


@pytest.fixture
def oci() -> Iterator[Registry]:
    with registry() as content:
        yield content


@pytest.fixture
def models(tmp_path) -> Path:
    """Three versions of one model, more than fit on a page of tags."""
    for version in (1, 2, 10):
        write_bundle(tmp_path / f"models/mixed/{version}", MIXED, golden=GOLDEN_X, version=version)
    return tmp_path / "models"


@pytest.fixture
def cache(tmp_path) -> Cache:
    return Cache(tmp_path / "cache")


def address(text: str) -> Address:
    found = parse_address(text)
    assert found is not None
    return found


def versions(folder: Path) -> list[str]:
    return [path.name for path in bundles_at(folder, every_version=True)]


def push(models: Path, oci: Registry, *, force: bool = False) -> list[str]:
    return push_models(models, address(f"oci://{oci.host}/team"), force=force)


def test_a_model_comes_back_as_it_was(oci, models, cache):
    """All versions, on every page of tags; what was pushed is found by its digest, too."""
    pushed = push(models, oci)
    every = fetch_models(address(f"oci://{oci.host}/team/mixed"), cache)
    pinned = fetch_models(address(pushed[1]), cache)

    assert ["1", "2", "10"] == versions(every)
    assert ["2"] == versions(pinned)
    assert pushed[1].startswith(f"oci://{oci.host}/team/mixed:2@sha256:")
    original = open_bundle(models / "mixed" / "2").manifest
    assert original == open_bundle(every / "mixed/2").manifest == open_bundle(pinned / "mixed/2").manifest


def test_one_version_by_its_tag(oci, models, cache):
    """Other versions are not downloaded."""
    push(models, oci)

    assert ["10"] == versions(fetch_models(address(f"oci://{oci.host}/team/mixed:10"), cache))


def test_the_artifact_is_one_that_other_tools_read(oci, models):
    """Each file is a layer with its path as the title, and its digest is that of the bundle's manifest."""
    push(models / "mixed" / "1", oci)
    artifact = json.loads(oci.manifests["team/mixed", "1"])
    layers = {layer["annotations"][TITLE]: layer for layer in artifact["layers"]}
    files = open_bundle(models / "mixed" / "1").manifest.files

    assert (2, ARTIFACT, b"{}") == (
        artifact["schemaVersion"],
        artifact["artifactType"],
        oci.blobs[artifact["config"]["digest"]],
    )
    assert {*files, "manifest.json"} == layers.keys()
    assert {name: (f"sha256:{entry.sha256}", entry.bytes) for name, entry in files.items()} == {
        name: (layer["digest"], layer["size"]) for name, layer in layers.items() if name in files
    }


def test_files_that_the_registry_has_are_not_sent_again(oci, models):
    """Versions share files."""
    push(models, oci)
    sent = [path for method, path in oci.requests if method == "PUT" and "/blobs/" in path]

    assert len(sent) == len(oci.blobs)


def test_a_version_that_is_there_already(oci, models, cache):
    """It is replaced with --force only."""
    push(models / "mixed" / "1", oci)
    with pytest.raises(BundleError, match="this version is there already"):
        push(models / "mixed" / "1", oci)

    assert 1 == len(push(models / "mixed" / "1", oci, force=True))


def test_the_servers_of_a_tag_follow_it(oci, models, tmp_path, monkeypatch):
    """A server with --watch serves a version that is pushed while it runs."""
    monkeypatch.setenv("DEMI_CACHE", str(tmp_path / "cache"))
    push(models / "mixed" / "1", oci)
    with serving(f"oci://{oci.host}/team/mixed", "--watch", "0.2") as server:
        push(models / "mixed" / "2", oci)
        for _ in range(200):
            found = httpx.get(f"{server.url}/v2/models/mixed").json()["versions"]
            if found == ["1", "2"]:
                break
            time.sleep(0.05)

    assert ["1", "2"] == found


class TestRefused:
    """What a registry may not do, and addresses that nobody can have."""

    def test_another_artifact_under_the_digest(self, oci, models, cache):
        """A pinned address is compared with what arrives."""
        (pushed,) = push(models / "mixed" / "1", oci)
        reference = pushed.rpartition("@")[2]
        oci.manifests["team/mixed", reference] += b" "

        with pytest.raises(DigestError, match="something else than its digest promises"):
            fetch_models(address(pushed), cache)

    @pytest.mark.parametrize("name", ["manifest.json", "model.onnx"])
    def test_a_damaged_file(self, oci, models, cache, name):
        """The manifest is compared with the registry's digest, every other file with the manifest's."""
        push(models / "mixed" / "1", oci)
        layers = json.loads(oci.manifests["team/mixed", "1"])["layers"]
        damaged = next(layer["digest"] for layer in layers if layer["annotations"][TITLE] == name)
        oci.blobs[damaged] = oci.blobs[damaged][:-1] + b"x"

        with pytest.raises(DigestError):
            fetch_models(address(f"oci://{oci.host}/team/mixed:1"), cache)
        assert not list((cache.folder / "served").rglob("manifest.json"))

    @pytest.mark.parametrize(
        ("artifact", "words"),
        [
            ({"layers": []}, "the artifact has no file `manifest.json`"),
            ({"manifests": []}, "the registry's manifest cannot be read"),
            (
                {
                    "layers": [
                        {"mediaType": "x", "digest": "../../secret", "size": 1, "annotations": {TITLE: "manifest.json"}}
                    ]
                },
                "is not a SHA-256 digest",
            ),
        ],
        ids=["no file", "an index", "a path"],
    )
    def test_other_artifacts(self, oci, cache, artifact, words):
        """They are described, and nothing is asked for by a name that is not a digest."""
        data = json.dumps(artifact).encode()
        oci.manifests |= {("team/mixed", "1"): data, ("team/mixed", digest(data)): data}

        with pytest.raises(BundleError, match=words):
            fetch_models(address(f"oci://{oci.host}/team/mixed:1"), cache)

    @pytest.mark.parametrize("path", ["team/none", "team/none:1"])
    def test_nothing_there(self, oci, cache, path):
        """A repository or a tag that does not exist."""
        with pytest.raises(BundleError, match="there is no such file or folder"):
            fetch_models(address(f"oci://{oci.host}/{path}"), cache)

    def test_a_folder_of_repositories(self, oci, cache):
        """Registries do not list them."""
        with pytest.raises(BundleError, match="do not list their repositories"):
            fetch_models(address(f"oci://{oci.host}"), cache)

    def test_tags_that_are_no_versions(self, oci, models, cache):
        """They are served by name only."""
        push(models / "mixed" / "1", oci)
        oci.manifests["team/mixed", "latest"] = oci.manifests.pop(("team/mixed", "1"))
        with pytest.raises(BundleError, match="no tag that is a version"):
            fetch_models(address(f"oci://{oci.host}/team/mixed"), cache)

        assert ["1"] == versions(fetch_models(address(f"oci://{oci.host}/team/mixed:latest"), cache))

    @pytest.mark.parametrize("path", ["Team/mixed", "team//mixed", "team/mixed:a/b", "team/mixed:", "../mixed"])
    def test_addresses_that_no_registry_has(self, oci, cache, path):
        """Repositories have small letters, and tags no slash."""
        with pytest.raises(InputError, match="not the address of a repository"):
            fetch_models(address(f"oci://{oci.host}/{path}"), cache)

    def test_names_that_no_repository_has(self, oci, tmp_path):
        """A bundle whose name has capital letters."""
        write_bundle(tmp_path / "Mixed" / "1", MIXED, name="Mixed")
        with pytest.raises(InputError, match="`team/Mixed` cannot be a repository"):
            push(tmp_path / "Mixed", oci)

    def test_no_registry(self, cache):
        """The error comes at once, after no retries, and names the address."""
        with pytest.raises(StorageError, match="cannot be read"):
            fetch_models(address("oci://127.0.0.1:1/team/mixed"), cache)


@pytest.mark.parametrize("tokens", [False, True], ids=["Basic", "tokens"])
def test_a_password(oci, models, cache, tmp_path, monkeypatch, tokens):
    """The credentials of `docker login` are used; without them the error says how to log in."""
    oci.password, oci.tokens = "secret", tokens
    with pytest.raises(InputError, match="access is denied") as denied:
        push(models / "mixed" / "1", oci)
    login = {"auths": {oci.host: {"auth": base64.b64encode(b"me:secret").decode()}}}
    (tmp_path / "docker").mkdir()
    (tmp_path / "docker" / "config.json").write_text(json.dumps(login))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    push(models / "mixed" / "1", oci)

    assert f"docker login {oci.host}" in denied.value.hint
    assert ["1"] == versions(fetch_models(address(f"oci://{oci.host}/team/mixed:1"), cache))
