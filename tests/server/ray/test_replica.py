"""A replica without Ray: where its models come from."""

from __future__ import annotations

import contextlib

import fsspec
import pytest

from demi.remote.address import Address
from demi.remote.push import push_models
from demi.server.ray.args import Args
from demi.server.ray.replica import Replica
from tests.server.bundles import SCALE, write_bundle
from tests.server.ray.test_fleet import FakePeers


class PeersOfAnApplication(FakePeers):
    """Peers with what Ray knows about them."""

    app, deployment = "default", "Demi"


@pytest.fixture
def address(tmp_path, monkeypatch):
    """Return the address of a model, on a machine whose cache is empty."""
    monkeypatch.setenv("DEMI_CACHE", str(tmp_path / "cache"))
    found = Address("memory://fleet", "memory")
    push_models(write_bundle(tmp_path / "scale" / "1", SCALE), found)
    yield found
    fsspec.filesystem("memory").store.clear()


def test_a_replica_downloads_its_models_to_the_cache_of_its_node(address, tmp_path):
    """It serves what is at the address; other replicas of the node find the files there."""
    replica = Replica.__new__(Replica)
    settings = Args(models=str(address), trial=False, allow_without_key=True, runtime="onnxruntime").settings
    replica._settings, replica._peers, replica._held = settings, PeersOfAnApplication(), contextlib.ExitStack()
    service = replica._open(address)
    (model,) = service.repository
    service.close()
    replica._held.close()

    assert ("scale", "1") == (model.name, model.version)
    assert model.path is not None
    assert model.path.is_relative_to(tmp_path / "cache")
