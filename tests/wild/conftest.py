"""Exports of the wild models, each run once per session, and a table of them at the end."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server.processes import ServerProcess, serving
from tests.wild.exporting import Exported, Judged, export, judge
from tests.wild.models import BY_NAME, Wild
from tests.wild.table import HEADER, row

Key = tuple[str, str]
"""Name of a model, and a precision."""


class Workshop:
    """Exports of this session and their evaluations, each made on first use."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.exports: dict[Key, Exported] = {}
        self.judgements: dict[Key, Judged] = {}

    def exported(self, name: str, precision: str) -> Exported:
        """Return the export of a model; skip the test if its packages are not in the cache."""
        model = require(name)
        if (name, precision) not in self.exports:
            self.exports[name, precision] = export(model, precision, self.folder)
        return self.exports[name, precision]

    def judged(self, name: str, precision: str) -> Judged:
        """Return the evaluation of its bundle on held-out inputs; fail the test if there is no bundle."""
        exported = self.exported(name, precision)
        assert not exported.failure, exported.failure
        if (name, precision) not in self.judgements:
            self.judgements[name, precision] = judge(BY_NAME[name], exported)
        return self.judgements[name, precision]

    def table(self) -> list[str]:
        """Return a table with a line for each export."""
        return [row(BY_NAME[key[0]], exported, self.judgements.get(key)) for key, exported in self.exports.items()]


def require(name: str) -> Wild:
    """Return a model; skip the test if one of its packages is not in the cache."""
    if why := BY_NAME[name].missing:
        pytest.skip(why)
    return BY_NAME[name]


_WORKSHOPS: list[Workshop] = []
"""The session's workshop, for the table at its end."""


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """Return the session's workshop."""
    made = Workshop(tmp_path_factory.mktemp("wild"))
    _WORKSHOPS.append(made)
    return made


@pytest.fixture(scope="session")
def servers(workshop: Workshop, request: pytest.FixtureRequest) -> Iterator[dict[str, ServerProcess]]:
    """Run `demi serve` for each precision, on the bundles of all models in this session's tests."""
    for item in request.session.items:
        named = getattr(item, "callspec", None)
        if named is not None and {"name", "precision"} <= set(named.params):
            name, precision = named.params["name"], named.params["precision"]
            if name in BY_NAME and not BY_NAME[name].missing:  # tests in other folders have other parameters
                workshop.exported(name, precision)
    # FP16 in half, and the FP32 reference of BF16 bundles, for which ONNX Runtime has no kernels on a CPU.
    with contextlib.ExitStack() as running:
        yield {
            precision: running.enter_context(serving(workshop.folder / precision, "--precision", wanted))
            for precision, wanted in (("fp16", "half"), ("bf16", "auto"))
            if (workshop.folder / precision).is_dir()
        }


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the duration and result of each export."""
    for made in _WORKSHOPS:
        if made.exports:
            terminalreporter.section("wild models")
            terminalreporter.write_line("\n".join([HEADER, *made.table()]))
