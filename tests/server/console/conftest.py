"""One server and one browser for all tests of the console that leave them as they were."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from tests.server.console.bundles import write_repository
from tests.server.processes import ServerProcess, serving


@pytest.fixture(scope="session")
def console_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """Start a server that compares every request, and reports drift as degraded."""
    models = write_repository(tmp_path_factory.mktemp("console"))
    with serving(models, "--shadow", "1", "--on-drift", "degrade") as process:
        yield process


@pytest.fixture
def client(console_server: ServerProcess) -> Iterator[httpx.Client]:
    """Open an HTTP client."""
    with httpx.Client(base_url=console_server.url, timeout=20) as client:
        yield client
