"""For your own test suite: `assert_within_budget(bundle, data)`, and the check behind it.

    from demi.testing import assert_within_budget

    def test_half_is_good_enough():
        assert_within_budget("models/digits", "heldout.npz", labels="labels", metric="top1", max_loss=0.002)

Importing this module is quick: what a check needs is imported when one runs.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from demi.accuracy.budget import parse_budget
from demi.arguments import require as require_kind
from demi.errors import InputError
from demi.printable import printable
from demi.tensors import Array

if TYPE_CHECKING:
    from demi.calibration.gate.check import Check

Inputs = str | Path | Mapping[str, Array]
"""Samples: a file or folder, `module:function`, or arrays by name whose first axis is samples."""


def assert_within_budget(
    bundle: str | Path,
    data: Inputs | None = None,
    *,
    budget: str | Sequence[str] = (),
    labels: str | None = None,
    metric: str | None = None,
    max_loss: float | None = None,
    baseline: str | Path | None = None,
    fail_on_plan_change: bool = False,
) -> Check:
    """Raise AssertionError, which names output, numbers and budget, unless `demi check` would pass; else the check.

    `budget` is as on the command line (`relative_l2=1e-3`), one or several. Raises a DemiError when bundle, data, labels,
    metric or baseline cannot be used: that is not a failed assertion.
    """
    __tracebackhide__ = True
    found = check(
        bundle,
        data,
        budget=budget,
        labels=labels,
        metric=metric,
        max_loss=max_loss,
        baseline=baseline,
        fail_on_plan_change=fail_on_plan_change,
    )
    require(found)
    return found


def check(
    bundle: str | Path,
    data: Inputs | None = None,
    *,
    budget: str | Sequence[str] = (),
    labels: str | None = None,
    metric: str | None = None,
    max_loss: float | None = None,
    baseline: str | Path | None = None,
    fail_on_plan_change: bool = False,
) -> Check:
    """Return the result of `demi check`, truthy when it passed. Arguments and errors are those of `assert_within_budget`."""
    from demi.calibration.gate.baseline import read_baseline
    from demi.calibration.gate.check import CheckOptions, check_bundle
    from demi.calibration.gate.data import data_of, read_data
    from demi.calibration.gate.gates import Level, Rules

    _check_arguments(bundle, budget, labels, metric, max_loss, baseline)
    samples = None
    if data is not None:
        samples = data_of(data, labels) if isinstance(data, Mapping) else read_data(_name(data), labels)
    texts = [budget] if isinstance(budget, str) else list(budget)
    options = CheckOptions(
        budget=parse_budget(texts) if texts else None,
        data=samples,
        metric=metric,
        baseline=read_baseline(Path(baseline)) if baseline is not None else None,
        rules=Rules(max_loss, Level.ERROR if fail_on_plan_change else Level.WARNING),
    )
    return check_bundle(Path(bundle), options=options)


def _check_arguments(
    bundle: object, budget: str | Sequence[str], labels: object, metric: object, max_loss: object, baseline: object
) -> None:
    """Raise InputError for an argument of another kind: that is not a failed assertion either."""
    nothing = type(None)
    require_kind(bundle, (str, os.PathLike), "bundle", "the path of a bundle")
    require_kind(budget, (str, list, tuple), "budget", "`relative_l2=1e-3`, or a list of such texts")
    for text in [budget] if isinstance(budget, str) else list(budget):
        require_kind(text, str, "budget", "a list of texts such as `relative_l2=1e-3`")
    require_kind(labels, (str, nothing), "labels", "the name of an array in the data")
    require_kind(metric, (str, nothing), "metric", "`top1` and the like, or `package.module:function`")
    require_kind(max_loss, (int, float, nothing), "max_loss", "a number")
    require_kind(baseline, (str, os.PathLike, nothing), "baseline", "the path of a baseline")


def _name(data: object) -> str:
    if not isinstance(data, str | os.PathLike):
        raise InputError(
            f"samples of type {type(data).__name__}",
            hint="give {input name: array}, a file, or package.module:function",
        )
    return str(data)


def require(found: Check) -> None:
    """Raise AssertionError with every failure of a check that did not pass."""
    __tracebackhide__ = True
    if not found:
        lines = [f"{found.name} v{found.version} ({found.bundle}) failed:", *found.failures]
        raise AssertionError("\n".join(map(printable, lines)))
