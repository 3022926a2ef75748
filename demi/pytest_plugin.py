"""The pytest plugin with the `demi_check` fixture. Every pytest run loads it, so it imports nothing but pytest."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from demi.calibration.gate.check import Check


@pytest.fixture
def demi_check(record_property: Callable[[str, object], None]) -> Callable[..., Check]:
    """Check a bundle as `demi.testing.assert_within_budget` does, and record every measure as a test property.

    The properties are in the XML of `--junitxml`, whether the test passed or not.
    """
    from demi.errors import DemiError
    from demi.testing import check, require

    def run(bundle: object, data: object = None, **options: object) -> Check:
        __tracebackhide__ = True
        try:
            found: Check = check(bundle, data, **options)  # type: ignore[arg-type]
        except DemiError as error:
            raise error.with_traceback(None) from None  # its message says all; Demi's own frames would bury it
        for measure in found.measures:
            record_property(f"demi: {found.name}: {measure}", measure.value)
        require(found)
        return found

    return run
