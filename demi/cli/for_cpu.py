"""`demi export --for cpu`: export, let this CPU judge, and export again where its own answers show a better way.

What the CPU computes is not what was emulated: OpenVINO's conversions cut off more than rounding does, and a format with
slower units may pay where the faster one is too inexact. So the first bundle stays where it pays, unless another would
probably be much faster: with a plan that uses less of the budget, where a faster way was refused for its error alone, or in
another format, where this CPU computes the whole model faster in it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from demi.bundles.bundle import check_target, writing
from demi.bundles.drafts import scratch
from demi.errors import OverBudgetError
from demi.proofs.record import MISSED, Proof

if TYPE_CHECKING:
    from demi.exporter.request import Exported, ExportRequest

CORRECTIONS = 1
"""Plans that are made anew with less of the budget, for each format: each takes as long as an export."""

REACHED = 0.85
"""The share of the budget that a corrected plan is to use on the device."""

LEAST_SHARE = 0.1
"""A plan with less of the budget than this would leave almost nothing in half."""

BETTER = 1.05
"""Speed that another bundle must have, relative to the one that is there, to replace it."""

Export = Callable[["ExportRequest"], "Exported"]
Judge = Callable[[Path], Proof]
Promise = Callable[[Path, str], float]
"""Returns how many times as fast as FP32 this CPU computes the model of a bundle wholly in a format, however wrong."""
Note = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Making:
    """Functions that make bundles, judge them on this CPU and report on them."""

    export: Export
    judge: Judge
    promise: Promise
    note: Note


@dataclass(frozen=True, slots=True)
class Judged:
    """An exported bundle, and what this CPU makes of it."""

    exported: Exported
    proof: Proof
    share: float = 1.0
    """The share of the budget that its plan was given."""

    def is_better_than(self, other: Judged) -> bool:
        """Return whether it serves here and the other does not, or both do and it is clearly faster."""
        if self.proof.best is None or other.proof.best is None:
            return self.proof.best is not None
        return self.proof.best.speedup > BETTER * other.proof.best.speedup


def export_for_cpu(request: ExportRequest, formats: Sequence[str], making: Making) -> Judged:
    """Write the bundle that is fastest on this CPU, in the first of `formats` unless another is needed or much faster.

    Raises as an export does for the last format; a model that is not within its budget in one format is tried in the next.
    """
    check_target(request.target, force=request.force)
    with scratch() as folder:
        best = _best(_Maker(request, folder, making), formats)
        with writing(request.target, force=request.force) as draft:
            shutil.copytree(best.exported.path, draft, dirs_exist_ok=True)
    return replace(best, exported=replace(best.exported, path=request.target))


def _best(maker: _Maker, formats: Sequence[str]) -> Judged:
    best: Judged | None = None
    for number, precision in enumerate(formats, 1):
        if best is not None and not maker.is_worth_a_try(precision, best):
            continue
        try:
            for made in maker.made(precision):
                best = made if best is None or made.is_better_than(best) else best
        except OverBudgetError as error:
            if best is None and number == len(formats):
                raise
            maker.making.note(f"{precision}: {error.message.splitlines()[0]}")
    assert best is not None
    return best


@dataclass(frozen=True, slots=True)
class _Maker:
    """Makes bundles of one model below `folder`, and has them judged."""

    request: ExportRequest
    folder: Path
    making: Making

    def is_worth_a_try(self, precision: str, best: Judged) -> bool:
        """Return whether another format is needed, or promises to be much faster; a note says so."""
        promise = self.making.promise(best.exported.path, precision)
        found = best.proof.best.speedup if best.proof.best is not None else 0.0
        if best.proof.pays and promise < MISSED * found:
            return False
        of_all = f", which would take {1 / promise:.2f} of it for the whole model" if promise else ""
        self.making.note(f"{best.proof.verdict()}; trying {precision}{of_all}")
        return True

    def made(self, precision: str) -> Iterator[Judged]:
        """Yield a bundle in a format, and after it those with plans that this CPU's own answers ask for."""
        share = 1.0
        for number in range(1 + CORRECTIONS):
            made = self._judged(precision, share, self.folder / f"{precision}-{number}")
            yield made
            wanted = share_for(made) if self.request.plan is None else None
            if wanted is None or number == CORRECTIONS:
                break
            share = wanted
            self.making.note(f"planning again with {share:.0%} of the budget, since {_said(made.proof)}")

    def _judged(self, precision: str, share: float, folder: Path) -> Judged:
        settings = replace(self.request.settings, precision=precision, share=share)
        output = folder / self.request.output.resolve().name
        exported = self.making.export(replace(self.request, output=output, settings=settings))
        return Judged(exported, self.making.judge(exported.path), share)


def share_for(made: Judged) -> float | None:
    """Return the share of the budget with which a plan is to be made anew; None where that would not help.

    A way that was refused for its error used `load` of the budget on the device where the emulator expected another; a
    plan in proportion would use `REACHED` of it.
    """
    missed = made.proof.missed
    if missed is None:
        return None
    expected = made.exported.conversion.comparison.load
    share = min(REACHED * expected / missed.load, 0.9 * made.share)
    return share if share >= LEAST_SHARE else None


def _said(proof: Proof) -> str:
    missed = proof.missed
    assert missed is not None
    return f"{missed.road} would take {1 / missed.speedup:.2f} of FP32's time, and is {missed.why}"
