"""Servers to attack: one that logs every request, and one with keys, which uses the fast path."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.server.bundles import SCALE, SLOW, write_bundle
from tests.server.processes import ServerProcess, serving

KEY = "an-api-key-for-the-tests"


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory):
    """Return two small models: `scale` is quick, and the duration of `slow` depends on its input."""
    folder = tmp_path_factory.mktemp("hostile")
    write_bundle(folder / "scale" / "1", SCALE)
    write_bundle(folder / "slow" / "1", SLOW)
    return folder


@pytest.fixture(scope="session", params=["--access-log", "--no-access-log"])
def victim(models, request) -> Iterator[ServerProcess]:
    """Return a server without keys, with every feature on that an attacker could misuse."""
    with serving(models, "--allow-model-control", "--allow-shared-memory", request.param) as process:
        yield process


@pytest.fixture(scope="session", params=["--access-log", "--no-access-log"])
def locked(models, request, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """Return a server with a key."""
    keys = tmp_path_factory.mktemp("keys") / "keys.txt"
    keys.write_text(KEY + "\nanother-key-for-the-tests\n")
    keys.chmod(0o600)
    with serving(models, "--api-key-file", str(keys), request.param) as process:
        yield process
