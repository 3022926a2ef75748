"""Shared fixtures: README.md's commands, run once, and what they leave behind; and the wheel, built once.

Of several processes that share the tests, one takes all files that need these fixtures, so that they are made once.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.fresh import build_wheel
from tests.readme import (
    README,
    Step,
    differences,
    link_examples,
    read_steps,
    run_steps,
)

SHARED = frozenset({"tour", "wheel"})
"""Fixtures that take a minute and more."""

SHARING = (
    "tests/real/",
    "tests/deploy/test_helm.py",
    "tests/deploy/test_image.py",
    "tests/test_docs.py",
    "tests/test_packaging.py",
)
"""Files, or folders of them, whose tests use these fixtures."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """Share the tests by file, whatever `--dist` says."""
    from tests.scheduling import ByFile

    return ByFile(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the tests that share fixtures, since they take the longest; refuse others that use them."""
    for item in items:
        if SHARED & set(getattr(item, "fixturenames", ())) and not item.nodeid.startswith(SHARING):
            raise pytest.UsageError(f"{item.nodeid} uses a shared fixture: name its file in tests/conftest.py")
    items.sort(key=lambda item: not item.nodeid.startswith(SHARING))  # else in their order


@dataclass(frozen=True)
class Tour:
    """A folder in which every command of README.md has run: real models, trained, exported and served."""

    folder: Path
    steps: list[Step]

    def made(self, path: str) -> Path:
        """A file or folder that some command makes; when it is missing, the test fails with what went wrong."""
        found = self.folder / path
        failed = [line for step in self.steps if step.code for line in differences(step)]
        assert found.exists(), f"README.md's commands did not make {path}:\n" + "\n".join(failed)
        return found


@pytest.fixture(scope="session")
def tour(tmp_path_factory: pytest.TempPathFactory) -> Tour:
    """README.md's commands, run once for all tests; about two minutes on two cores."""
    folder = link_examples(tmp_path_factory.mktemp("tour"))
    return Tour(folder, run_steps(read_steps(README.read_text()), folder))


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Demi's wheel, built once for all tests."""
    return build_wheel(tmp_path_factory.mktemp("source"))
