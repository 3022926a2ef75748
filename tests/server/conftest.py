"""One server process for all tests that only ask."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from tests.server.bundles import write_repository
from tests.server.processes import ServerProcess, serving


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server with every test model, a small body limit and one damaged bundle."""
    with serving(write_repository(tmp_path_factory.mktemp("models")), "--max-body", "1M") as process:
        yield process


@pytest.fixture
def client(server: ServerProcess) -> Iterator[httpx.Client]:
    """A plain HTTP client that asks for no compression unless told to."""
    with httpx.Client(base_url=server.url, headers={"accept-encoding": "identity"}, timeout=20) as client:
        yield client
