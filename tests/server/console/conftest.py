"""One server and one browser for all tests of the console that leave them as they were."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import httpx
import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, sync_playwright

from tests.browser import CHROMIUM
from tests.server.console.bundles import write_repository
from tests.server.processes import ServerProcess, serving

OpenTab = Callable[..., Page]


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


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """Start a headless browser, for one module: while it is open, no other test can run an event loop in this thread."""
    with sync_playwright() as playwright:
        flags = [
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        ]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=[*flags, "--no-proxy-server"])
        yield browser
        browser.close()


def is_complaint(message: ConsoleMessage) -> bool:
    """Return whether the page complains; that a report's scripts and images were blocked is no complaint."""
    is_blocked = "is sandboxed" in message.text or "report.html" in message.location.get("url", "")
    return message.type in ("error", "warning") and not is_blocked and 'directive: "img-src data:"' not in message.text


@pytest.fixture
def tab(chromium: Browser) -> Iterator[OpenTab]:
    """Return a function that opens a page in a window of its own; no page may complain in the browser's console."""
    complaints: list[str] = []
    contexts = []

    def open_tab(url: str, width: int = 1280, height: int = 900, *, dark: bool = False) -> Page:
        scheme = "dark" if dark else "light"
        contexts.append(chromium.new_context(viewport={"width": width, "height": height}, color_scheme=scheme))
        page = contexts[-1].new_page()
        page.set_default_timeout(20_000)
        page.on("console", lambda message: is_complaint(message) and complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(url)
        return page

    yield open_tab
    for context in contexts:
        context.close()
    assert [] == complaints
