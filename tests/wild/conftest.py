"""The wild models' exports, each made once for all tests that look at it, and a table of them at the end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server.processes import ServerProcess, serving
from tests.wild.exporting import Exported, Judged, export, judge
from tests.wild.models import BY_NAME, Wild
from tests.wild.table import HEADER, row

Key = tuple[str, str]
"""A model's name and a precision."""


class Workshop:
    """The exports of this session and their judgements; each is made when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.exports: dict[Key, Exported] = {}
        self.judgements: dict[Key, Judged] = {}

    def exported(self, name: str, precision: str) -> Exported:
        """The export of a model; skips the test where its packages are not in the cache."""
        model = require(name)
        if (name, precision) not in self.exports:
            self.exports[name, precision] = export(model, precision, self.folder)
        return self.exports[name, precision]

    def judged(self, name: str, precision: str) -> Judged:
        """What its bundle is worth on held-out inputs; fails the test where there is no bundle."""
        exported = self.exported(name, precision)
        assert not exported.failure, exported.failure
        if (name, precision) not in self.judgements:
            self.judgements[name, precision] = judge(BY_NAME[name], exported)
        return self.judgements[name, precision]

    def table(self) -> list[str]:
        """A line for each export."""
        return [row(BY_NAME[key[0]], exported, self.judgements.get(key)) for key, exported in self.exports.items()]


def require(name: str) -> Wild:
    """A model whose packages are in the cache; skips the test where one is not."""
    if why := BY_NAME[name].missing:
        pytest.skip(why)
    return BY_NAME[name]


_WORKSHOPS: list[Workshop] = []
"""The session's, for the table at its end."""


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """Where exports are made."""
    made = Workshop(tmp_path_factory.mktemp("wild"))
    _WORKSHOPS.append(made)
    return made


@pytest.fixture(scope="session")
def server(workshop: Workshop, request: pytest.FixtureRequest) -> Iterator[ServerProcess]:
    """One `demi serve` over the bundles of all models that this session's tests are about."""
    for item in request.session.items:
        named = getattr(item, "callspec", None)
        if named is not None and {"name", "precision"} <= set(named.params):
            name, precision = named.params["name"], named.params["precision"]
            if name in BY_NAME and not BY_NAME[name].missing:  # other folders' tests have names of their own
                workshop.exported(name, precision)
    with serving(workshop.folder / "models") as process:
        yield process


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what the exports took, and what came of them."""
    for made in _WORKSHOPS:
        if made.exports:
            terminalreporter.section("wild models")
            terminalreporter.write_line("\n".join([HEADER, *made.table()]))
