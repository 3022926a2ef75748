"""`demi check`: a bundle against its golden outputs, its FP32 reference, its budget, the user's data and a baseline."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from demi.accuracy.budget import Budget
from demi.accuracy.compare import Comparison
from demi.bundles.bundle import open_bundle
from demi.calibration.gate.baseline import Baseline, Entry, plan_to_text, stored
from demi.calibration.gate.bootstrap import SEED
from demi.calibration.gate.comparing import compare_with_baseline, measures_of
from demi.calibration.gate.data import Data
from demi.calibration.gate.evaluation import Evaluation
from demi.calibration.gate.gates import Facts, Rules, Verdict, judge
from demi.calibration.gate.measure import Measure
from demi.calibration.gate.metrics import find_metric
from demi.calibration.gate.models import (
    check_golden,
    evaluate_data,
    half_session,
    reference_session,
)
from demi.errors import DemiError, InputError
from demi.plan import PrecisionPlan
from demi.runtime.base import CPU, Device


@dataclass(frozen=True, slots=True)
class CheckOptions:
    """What a bundle is checked on beside its golden sets, and with what it is compared.

    Raises InputError for a choice that would have no effect: a check that looks stricter than it is.
    """

    budget: Budget | None = None
    """In place of the bundle's own."""
    data: Data | None = None
    metric: str | None = None
    """`top1`, `OUTPUT:top1` or `module:function`."""
    baseline: Baseline | None = None
    rules: Rules = field(default_factory=Rules)
    device: Device = CPU
    """Where the half model runs: on a CPU under the emulator. The FP32 reference stays on the CPU."""
    seed: int = SEED
    """Of the bootstrap."""

    def __post_init__(self) -> None:
        if self.metric is not None and self.data is None:
            raise InputError(f"the metric `{self.metric}` has nothing to look at", hint="give samples with --data")
        if self.metric is None and self.data is not None and self.data.labels is not None:
            raise InputError("the labels are for no metric", hint="say which one with --metric, e.g. --metric top1")
        if self.rules.max_loss is not None and not (math.isfinite(self.rules.max_loss) and self.rules.max_loss >= 0):
            raise InputError(f"a loss of at most {self.rules.max_loss} cannot be held", hint="give a number >= 0")
        if self.metric is None and self.rules.max_loss is not None:
            raise InputError("there is no metric that could lose", hint="say which one with --metric")


@dataclass(frozen=True, slots=True)
class Check:
    """The result of checking one bundle; truthy when it passed."""

    bundle: str
    name: str
    version: int
    precision: str
    facts: Facts
    measures: tuple[Measure, ...]
    """Everything that a baseline holds."""
    plan: PrecisionPlan | None
    verdicts: tuple[Verdict, ...]
    device: str = "cpu"
    """Where the half model ran; on `cpu` it was emulated."""
    varying: tuple[str, ...] = ()
    """One line for each output that FP32 itself answers with other values each time."""

    def __bool__(self) -> bool:
        return all(self.verdicts)

    @property
    def comparison(self) -> Comparison:
        """The golden sets' outputs against the budget."""
        return self.facts.golden.comparison

    @property
    def reference_error(self) -> float | None:
        """Relative L2 of the FP32 reference against the golden outputs; None without a reference."""
        return self.facts.reference_error

    @property
    def failures(self) -> tuple[str, ...]:
        """Why it failed, one line each."""
        return tuple(message for verdict in self.verdicts for message in verdict.errors)

    @property
    def measured_on(self) -> Evaluation:
        """What its measures come from: the data, or else the golden sets."""
        return self.facts.data or self.facts.golden

    def baseline_entry(self, tolerances: Mapping[str, float | str], known: Entry | None) -> Entry:
        """The bundle as it is now, for a baseline. Tolerances that the known entry states are kept, unless given."""
        return Entry(
            version=self.version,
            precision=self.precision,
            origin=self.measured_on.origin,
            samples=self.measured_on.samples,
            digest=self.measured_on.digest,
            device=self.device,
            measures=[stored(measure, tolerances.get(measure.name), known) for measure in self.measures],
            plan=plan_to_text(self.plan),
        )


@dataclass(frozen=True, slots=True)
class Broken:
    """A bundle that could not be checked, and why; never truthy."""

    bundle: str
    error: DemiError

    def __bool__(self) -> bool:
        return False


Outcome = Check | Broken


def check_bundles(
    paths: Sequence[Path], options: CheckOptions, step: Callable[[str], AbstractContextManager[Any]]
) -> list[Outcome]:
    """Check every bundle, in order; one that cannot be checked does not keep the others from it."""
    outcomes: list[Outcome] = []
    for path in paths:
        try:
            with step(f"checking {path}"):
                outcomes.append(check_bundle(path, options=options))
        except DemiError as error:
            outcomes.append(Broken(str(path), error))
    return outcomes


def exit_code(outcomes: Sequence[Outcome]) -> int:
    """How a command ends: the worst of all bundles, 0 when every one passed."""
    return max(each.error.exit_code if isinstance(each, Broken) else int(not each) for each in outcomes)


def check_bundle(path: Path, budget: Budget | None = None, options: CheckOptions | None = None) -> Check:
    """Run a bundle's half model, emulated or on a device, beside FP32, on its golden sets and on data, and judge both.

    `budget`, or that of the options, replaces the bundle's own. Raises BundleError (DigestError for a damaged file) when
    it cannot be read, and InputError when data, labels, metric or baseline do not fit it.
    """
    options = options or CheckOptions()
    bundle = open_bundle(path)
    bundle.require_proof()
    manifest = bundle.manifest
    wanted = budget or options.budget
    if wanted is not None:
        wanted.check_names(spec.name for spec in manifest.outputs)
    budget = wanted.instead_of(manifest.budget) if wanted is not None else manifest.budget
    metric = find_metric(options.metric, manifest.outputs) if options.metric is not None else None
    with half_session(bundle, options.device) as half, reference_session(bundle) as reference:
        golden, reference_error = check_golden(bundle, half, reference, budget)
        data = None
        if options.data:
            data = evaluate_data(bundle, half, reference, budget, options.data, metric, options.seed)
    plan = bundle.plan()
    measures = measures_of(bundle, plan, data or golden)
    compared = None
    if options.baseline:
        compared = compare_with_baseline(
            manifest, measures, plan, data or golden, options.baseline, options.seed, str(options.device)
        )
    facts = Facts(golden, data, reference_error, compared, options.rules)
    return Check(
        bundle=str(bundle.path),
        name=manifest.name,
        version=manifest.version,
        precision=manifest.precision,
        facts=facts,
        measures=measures,
        plan=plan,
        verdicts=judge(facts),
        device=str(options.device),
        varying=tuple(manifest.varying.words(live=options.device.kind != "cpu")),
    )
