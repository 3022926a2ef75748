"""`demi check`: measure a bundle on its golden sets and the user's data, and apply the gates to what was measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from demi.accuracy.budget import Budget
from demi.accuracy.compare import Comparison
from demi.bundles.bundle import Bundle, open_bundle
from demi.calibration.gate.baseline import Baseline, Entry, encode_plan, stored_measure
from demi.calibration.gate.baseline_comparison import baseline_measures, compare_with_baseline
from demi.calibration.gate.bootstrap import SEED
from demi.calibration.gate.bundle_evaluation import evaluate_data, evaluate_golden
from demi.calibration.gate.bundle_sessions import half_session, reference_session
from demi.calibration.gate.data import Data
from demi.calibration.gate.evaluation import Evaluation
from demi.calibration.gate.gates import CheckFacts, GateResult, Rules, apply_gates
from demi.calibration.gate.measure import Measure
from demi.calibration.gate.metrics import find_metric
from demi.calibration.gate.text_evaluation import (
    evaluate_encoder,
    evaluate_prompts,
    promises,
    text_models,
    with_recorded_texts,
)
from demi.calibration.rescaling.bundled import rescaling_problems
from demi.engines.key import key_path
from demi.errors import DemiError, DeviceError, InputError
from demi.generation.generator import open_generator
from demi.plan import PrecisionPlan
from demi.proofs.prove import proof_of
from demi.proofs.record import Road
from demi.runtime.base import CPU, Device
from demi.runtime.cores import usable_cores
from demi.runtime.options import RuntimeChoice


@dataclass(frozen=True, slots=True)
class CheckOptions:
    """Options of a check: data beside the golden sets, a metric, limits and a baseline.

    Raises InputError for an option without effect, which would make a check look stricter than it is.
    """

    budget: Budget | None = None
    """Replaces the bundle's own."""
    data: Data | None = None
    metric: str | None = None
    """`top1`, `OUTPUT:top1` or `module:function`."""
    baseline: Baseline | None = None
    rules: Rules = field(default_factory=Rules)
    device: Device = CPU
    """The device of the half model; on a CPU it is emulated. The FP32 reference always runs on the CPU."""
    seed: int = SEED
    """Seed of the bootstrap."""
    runtime: RuntimeChoice = "auto"
    """On a CPU: `openvino` lets the CPU itself compute in half; else half is emulated."""

    def __post_init__(self) -> None:
        if self.runtime == "openvino" and self.device.kind != "cpu":
            raise InputError("OpenVINO runs on a CPU here", hint="leave --device or --runtime out")
        if self.metric is not None and self.data is None:
            raise InputError(f"the metric `{self.metric}` has no data to run on", hint="give samples with --data")
        if self.metric is None and self.data is not None and self.data.labels is not None:
            raise InputError(
                "labels without a metric have no effect", hint="name one with --metric, e.g. --metric top1"
            )
        if self.rules.max_loss is not None and not (math.isfinite(self.rules.max_loss) and self.rules.max_loss >= 0):
            raise InputError(f"{self.rules.max_loss} is not a limit for a loss", hint="give a number >= 0")
        if self.metric is None and self.rules.max_loss is not None:
            raise InputError("a limit for the loss needs a metric", hint="name one with --metric")


@dataclass(frozen=True, slots=True)
class Check:
    """Result of checking one bundle; truthy when it passed."""

    bundle: str
    name: str
    version: int
    precision: str
    facts: CheckFacts
    measures: tuple[Measure, ...]
    """The measures that a baseline holds."""
    plan: PrecisionPlan | None
    gate_results: tuple[GateResult, ...]
    device: str = "cpu"
    """The device that the half model ran on; on `cpu` it was emulated."""
    varying: tuple[str, ...] = ()
    """One line for each output that differs from run to run in FP32 itself."""
    emulated: Mapping[str, float] = field(default_factory=dict)
    """The relative L2 that the emulator predicts for each output, if OpenVINO computed on the CPU itself."""

    def __bool__(self) -> bool:
        return all(self.gate_results)

    @property
    def comparison(self) -> Comparison:
        """Return the comparison of the golden sets with FP32 and the budget."""
        return self.facts.golden.comparison

    @property
    def reference_error(self) -> float | None:
        """Return the relative L2 of the FP32 reference against the golden outputs; None without a reference."""
        return self.facts.reference_error

    @property
    def failures(self) -> tuple[str, ...]:
        """Return the reasons for which it failed, one line each."""
        return tuple(message for result in self.gate_results for message in result.errors)

    @property
    def measured_on(self) -> Evaluation:
        """Return the evaluation that the measures come from: on the data, or else on the golden sets."""
        return self.facts.data or self.facts.golden

    def baseline_entry(self, tolerances: Mapping[str, float | str], known: Entry | None) -> Entry:
        """Return the entry for a baseline file. Tolerances of the `known` entry are kept unless given anew."""
        return Entry(
            version=self.version,
            precision=self.precision,
            origin=self.measured_on.origin,
            samples=self.measured_on.samples,
            digest=self.measured_on.digest,
            device=self.device,
            measures=[stored_measure(measure, tolerances.get(measure.name), known) for measure in self.measures],
            plan=encode_plan(self.plan),
        )


@dataclass(frozen=True, slots=True)
class UncheckedBundle:
    """A bundle that could not be checked, and the error; always falsy."""

    bundle: str
    error: DemiError

    def __bool__(self) -> bool:
        return False


Outcome = Check | UncheckedBundle


def check_bundles(
    paths: Sequence[Path], options: CheckOptions, step: Callable[[str], AbstractContextManager[Any]]
) -> list[Outcome]:
    """Check every bundle, in order. One that cannot be checked does not stop the others."""
    outcomes: list[Outcome] = []
    for path in paths:
        try:
            with step(f"checking {path}"):
                outcomes.append(check_bundle(path, options=options))
        except DemiError as error:
            outcomes.append(UncheckedBundle(str(path), error))
    return outcomes


def exit_code(outcomes: Sequence[Outcome]) -> int:
    """Return the exit code of a command: the highest of all bundles, 0 when all passed."""
    return max(each.error.exit_code if isinstance(each, UncheckedBundle) else int(not each) for each in outcomes)


def check_bundle(path: Path, budget: Budget | None = None, options: CheckOptions | None = None) -> Check:
    """Run a bundle's half model beside FP32 on its golden sets and on data, and apply the gates.

    `budget`, or the one in the options, replaces the bundle's own. Raises BundleError (DigestError for a damaged file)
    when the bundle cannot be read, and InputError when data, labels, metric or baseline do not fit it.
    """
    options = options or CheckOptions()
    bundle = open_bundle(path)
    bundle.require_proof()
    manifest = bundle.manifest
    generates = open_generator(bundle) is not None
    budget = _budget(bundle, budget or options.budget, generates=generates)
    if generates and options.metric is not None and options.data is not None and options.data.raw:
        raise InputError(
            "a model that generates has no task metric", where="--metric", hint="leave it out: its tokens are compared"
        )
    metric = find_metric(options.metric, manifest.outputs) if options.metric is not None else None
    road = _road(bundle) if options.runtime == "openvino" else None
    device = "openvino" if road else str(options.device)
    data = encoder = None
    with (
        half_session(bundle, options.device, road) as half,
        reference_session(bundle) as reference,
        text_models(bundle, half, reference, options.device, _encoder_road(bundle) if road else None) as models,
    ):
        golden, reference_error = evaluate_golden(bundle, half, reference, budget)
        if models:
            golden = with_recorded_texts(golden, models)
            encoder, drift = evaluate_encoder(models, budget)
            reference_error = max((each for each in (reference_error, drift) if each is not None), default=None)
        if models and options.data and options.data.raw:
            data = evaluate_prompts(models, options.data)
        elif options.data:
            data = evaluate_data(bundle, half, reference, budget, options.data, metric, options.seed)
    plan = bundle.plan()
    measures = baseline_measures(bundle, plan, data or golden)
    baseline = None
    if options.baseline:
        baseline = compare_with_baseline(
            manifest, measures, plan, data or golden, options.baseline, options.seed, device
        )
    facts = CheckFacts(
        golden, data, reference_error, baseline, options.rules, _rescaling(bundle), encoder,
        promises(bundle, budget) if generates else None,
    )  # fmt: skip
    return Check(
        bundle=str(bundle.path),
        name=manifest.name,
        version=manifest.version,
        precision=manifest.precision,
        facts=facts,
        measures=measures,
        plan=plan,
        gate_results=apply_gates(facts),
        device=device,
        varying=tuple(manifest.varying.describe(live=device != "cpu")),
        emulated=_emulated(bundle, budget) if road else {},
    )


def _budget(bundle: Bundle, wanted: Budget | None, *, generates: bool) -> Budget:
    """Return the limits to check: those that are `wanted`, which replace the bundle's own.

    Raises InputError for a limit on tokens or on an output that the bundle does not have.
    """
    own = bundle.manifest.budget
    if wanted is None:
        return own
    if wanted.tokens is not None and not generates:
        raise InputError(
            "`tokens` is a limit for models that generate",
            where="--budget",
            hint="leave it out, or limit an output, such as logits:top1=0.99",
        )
    encoder = bundle.encoder() if generates else None
    outputs = (*bundle.manifest.outputs, *(encoder.manifest.outputs if encoder else ()))
    wanted.check_names(spec.name for spec in outputs)
    return replace(own, tokens=wanted.tokens) if wanted == Budget(tokens=wanted.tokens) else wanted.instead_of(own)


def _rescaling(bundle: Bundle) -> tuple[str, ...] | None:
    """Return the errors in the certificates of a bundle and its encoder; None if nothing was rescaled."""
    encoder = bundle.encoder()
    found = [rescaling_problems(each) for each in (bundle, encoder) if each]
    known = [each for each in found if each is not None]
    return tuple(problem for each in known for problem in each) if known else None


def _encoder_road(bundle: Bundle) -> Road | None:
    """Return the proved way to run the half model of a bundle's encoder in OpenVINO; None for none: it is emulated."""
    encoder = bundle.encoder()
    found = proof_of(encoder, usable_cores(), key_path()).planned if encoder else None
    return found.road if found else None


def _road(bundle: Bundle) -> Road:
    """Return the proved way to run the bundle's half model in OpenVINO; DeviceError, with the verdict, if there is none."""
    proof = proof_of(bundle, usable_cores(), key_path())
    if (found := proof.planned) is None:
        raise DeviceError(
            proof.verdict(), where=str(bundle.path), hint="check it under the emulator: leave --runtime out"
        )
    return found.road


def _emulated(bundle: Bundle, budget: Budget) -> dict[str, float]:
    """Return the errors that the emulator predicts on the golden sets, by output."""
    with half_session(bundle) as half:
        evaluation, _ = evaluate_golden(bundle, half, None, budget)
    return {diff.output: diff.relative_l2 for diff in evaluation.comparison.outputs}
