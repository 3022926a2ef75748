"""Which bundle `demi export --for cpu` keeps, with exports and judgments that are given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from demi.bundles.manifest import MANIFEST
from demi.cli.for_cpu import Judged, Making, export_for_cpu, share_for
from demi.errors import BundleError, OverBudgetError
from demi.exporter.request import ExportRequest
from demi.proofs.record import SCHEMA, Attempt, Place, Proof, Road, Timing

PLACE = Place("Xeon", "2026.4.1", "1.32.0", "0" * 64, 2)
HALF, FREE = Road("model.onnx", "dynamic"), Road("reference.onnx", "bf16")
REFUSED = "beyond the budget on the golden inputs"


def attempt(road: Road, speedup: float, load: float, why: str = "") -> Attempt:
    return Attempt(road, why, {"y": 0.01 * load}, (Timing(1, speedup, 1.0),), load=load)


def proof(*attempts: Attempt, precision: str = "bf16") -> Proof:
    return Proof(SCHEMA, PLACE, "Xeon", precision, attempts)


PAYS = proof(attempt(HALF, 2.0, 0.5))
SLOW = proof(attempt(HALF, 0.9, 0.5))
MISSES = proof(attempt(HALF, 2.0, 0.96), attempt(FREE, 5.0, 1.2, REFUSED))


@dataclass(frozen=True)
class Measured:
    load: float


@dataclass(frozen=True)
class Converted:
    comparison: Measured


@dataclass(frozen=True)
class Made:
    """What an export returns, as far as it is looked at."""

    path: Path
    conversion: Converted


@dataclass
class Exports:
    """Writes bundles of one file, and notes what was asked for. Formats in `over` are not within the budget."""

    over: tuple[str, ...] = ()
    asked: list[tuple[str, float]] = field(default_factory=list)

    def __call__(self, request: ExportRequest) -> Made:
        precision, share = request.settings.precision, request.settings.share
        self.asked.append((precision, round(share, 3)))
        if precision in self.over:
            raise OverBudgetError(f"{precision} is not within its budget")
        request.target.mkdir(parents=True)
        (request.target / MANIFEST).write_text(f"{precision} {len(self.asked)}")
        return Made(request.target, Converted(Measured(0.6)))


def judging(*proofs: Proof) -> Callable[[Path], Proof]:
    """Return a judge that gives these proofs one after the other."""
    left = iter(proofs)
    return lambda path: next(left)


@dataclass
class Tried:
    """What came of an export for a CPU."""

    asked: list[tuple[str, float]]
    kept: str
    best: Judged
    notes: list[str]


@pytest.fixture
def export(tmp_path) -> Callable[..., Tried]:
    """Return a function that exports for a CPU which makes of the bundles what it is given."""

    def run(
        proofs: Sequence[Proof],
        formats: Sequence[str] = ("bf16",),
        over: tuple[str, ...] = (),
        promise: float = 0.0,
    ) -> Tried:
        exports, notes = Exports(over), []
        request = ExportRequest(Path("m.onnx"), tmp_path / "models" / "m")
        making = Making(exports, judging(*proofs), lambda _, __: promise, notes.append)
        best = export_for_cpu(request, formats, making)
        return Tried(exports.asked, (request.target / MANIFEST).read_text(), best, notes)

    return run


@pytest.mark.parametrize("promise", [0.0, 2.3])
def test_the_first_that_pays(export, promise):
    """Nothing else is tried, unless another format promises to be much faster."""
    tried = export([PAYS], ("bf16", "fp16"), promise=promise)

    assert ([("bf16", 1.0)], "bf16 1", []) == (tried.asked, tried.kept, tried.notes)


def test_the_other_format(export, tmp_path):
    """Where the first does not pay, the other one is tried, and kept if it is faster."""
    tried = export([SLOW, proof(attempt(HALF, 1.5, 0.1), precision="fp16")], ("bf16", "fp16"))

    assert ([("bf16", 1.0), ("fp16", 1.0)], "fp16 2") == (tried.asked, tried.kept)
    assert tmp_path / "models" / "m" / "1" == tried.best.exported.path
    assert [
        "bf16 in OpenVINO 2026.4.1 on Xeon takes 1.11 of FP32's time at an error of 0.005, which does not pay; trying fp16"
    ] == tried.notes


def test_a_format_that_promises_more(export):
    """It is tried, and kept where its plan makes the promise good."""
    faster = proof(attempt(HALF, 2.2, 0.1), precision="fp16")
    tried = export([PAYS, faster], ("bf16", "fp16"), promise=3.0)

    assert "fp16 2" == tried.kept
    assert tried.notes[0].endswith("; trying fp16, which would take 0.33 of it for the whole model")


def test_neither_format_pays(export):
    """The first stays, unless the other one is clearly faster."""
    tried = export([SLOW, proof(attempt(HALF, 0.92, 0.1), precision="fp16")], ("bf16", "fp16"))

    assert "bf16 1" == tried.kept


def test_a_format_that_is_right_before_one_that_is_wrong(export):
    """However fast the wrong one is."""
    tried = export([proof(Attempt(HALF, REFUSED)), proof(attempt(HALF, 0.5, 0.1))], ("bf16", "fp16"))

    assert "fp16 2" == tried.kept


def test_a_format_beyond_the_budget(export):
    """The next one is tried."""
    tried = export([PAYS], ("bf16", "fp16"), over=("bf16",))

    assert ("fp16 2", ["bf16: bf16 is not within its budget"]) == (tried.kept, tried.notes)


def test_every_format_beyond_the_budget(export, tmp_path):
    """The last one's error is raised, and nothing is left."""
    with pytest.raises(OverBudgetError, match="fp16 is not within"):
        export([], ("bf16", "fp16"), over=("bf16", "fp16"))
    assert not (tmp_path / "models" / "m" / "1").exists()


def test_a_plan_that_the_cpu_corrects(export):
    """A much faster way that was too inexact gets a plan with less of the budget, and the faster bundle is kept."""
    tried = export([MISSES, proof(attempt(HALF, 2.0, 0.5), attempt(FREE, 4.8, 0.7))])

    assert ([("bf16", 1.0), ("bf16", 0.425)], "bf16 2") == (tried.asked, tried.kept)
    assert (
        "planning again with 43% of the budget, since reference.onnx in bf16 would take 0.20 of FP32's time"
        in tried.notes[0]
    )


def test_a_correction_that_does_not_help(export):
    """The first bundle stays, after one correction."""
    worse = proof(attempt(HALF, 1.2, 0.96), attempt(FREE, 5.0, 1.2, REFUSED))
    tried = export([MISSES, worse])

    assert ([1.0, 0.425], "bf16 1") == ([share for _, share in tried.asked], tried.kept)


@pytest.mark.parametrize(
    ("attempts", "expected"),
    [
        ([attempt(HALF, 2.0, 0.5)], None),
        ([attempt(HALF, 2.0, 0.5), attempt(FREE, 2.2, 1.2, REFUSED)], None),
        ([attempt(HALF, 2.0, 0.5), Attempt(FREE, "died")], None),
        ([attempt(HALF, 0.5, 0.5), attempt(FREE, 0.9, 1.2, REFUSED)], None),
        ([attempt(HALF, 2.0, 0.5), attempt(FREE, 3.0, 1.2, REFUSED)], 0.425),
        ([attempt(HALF, 2.0, 2.9, REFUSED)], 0.85 * 0.6 / 2.9),
    ],
    ids=["nothing missed", "hardly faster", "died", "slower than FP32", "much faster", "nothing right"],
)
def test_when_a_plan_is_made_anew(attempts, expected):
    """Where a way was refused for its error alone, and would be much faster than what is taken and than FP32."""
    made = Judged(Made(Path("m"), Converted(Measured(0.6))), proof(*attempts))

    assert (None if expected is None else pytest.approx(expected)) == share_for(made)


def test_a_plan_without_any_room(tmp_path):
    """A share of the budget that leaves almost nothing in half is not tried."""
    made = Judged(Made(tmp_path, Converted(Measured(0.1))), MISSES)

    assert share_for(made) is None


def test_a_bundle_that_is_there(export, tmp_path):
    """It is refused before anything is exported."""
    there = tmp_path / "models" / "m" / "1"
    there.mkdir(parents=True)
    (there / MANIFEST).write_text("mine")

    with pytest.raises(BundleError, match="the output folder exists"):
        export([PAYS])
    assert "mine" == (there / MANIFEST).read_text()
