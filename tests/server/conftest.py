"""One server process for all tests that only send requests."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from tests.raw_inputs import write_raw_repository
from tests.server.bundles import write_repository
from tests.server.processes import ServerProcess, serving


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """Start a server with all test models, a small body limit and one damaged bundle."""
    with serving(write_repository(tmp_path_factory.mktemp("models")), "--max-body", "1M") as process:
        yield process


@pytest.fixture(scope="session")
def raw_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """Start a server with the tiny models that take texts, images and sound."""
    with serving(
        write_raw_repository(tmp_path_factory.mktemp("raw")), "--max-body", "1M", "--grpc-port", "0"
    ) as process:
        yield process


@pytest.fixture
def raw_client(raw_server: ServerProcess) -> Iterator[httpx.Client]:
    """Open a plain HTTP client for it."""
    with httpx.Client(base_url=raw_server.url, timeout=60) as client:
        yield client


@pytest.fixture
def client(server: ServerProcess) -> Iterator[httpx.Client]:
    """Open a plain HTTP client that does not request compression by default."""
    with httpx.Client(base_url=server.url, headers={"accept-encoding": "identity"}, timeout=20) as client:
        yield client
