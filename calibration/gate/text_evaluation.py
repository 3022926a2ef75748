"""Evaluation of a bundle that generates: half follows FP32's texts, those of its export and those for the user's data."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from demi.accuracy.budget import Budget
from demi.accuracy.compare import Comparison
from demi.accuracy.token_agreement import token_agreement
from demi.bundles.bundle import Bundle
from demi.calibration.follow_texts import Decoder, FollowedText, follow_text
from demi.calibration.gate.bundle_evaluation import evaluate_golden
from demi.calibration.gate.bundle_sessions import half_session, reference_session, run_half
from demi.calibration.gate.data import Data, digest_of
from demi.calibration.gate.evaluation import Evaluation
from demi.calibration.gate.gates import TextFacts
from demi.calibration.gate.measure import Measure, measure_of
from demi.calibration.raw_data import ROWS_OF_A_SET, read_raw
from demi.errors import BundleError, DemiError, InputError, SampleError
from demi.generation.generator import Generator, Prompt, open_generator
from demi.generation.recorded import RecordedText, read_texts
from demi.proofs.record import Road
from demi.runtime.base import CPU, Device, Session
from demi.tensors import Feeds, TensorSpec, check_feeds

TOKENS = "tokens"
"""The measure: the share of tokens that half chooses as FP32 does."""


@dataclass(frozen=True, slots=True)
class Precision:
    """Decoder and encoder of a bundle in one precision."""

    decoder: Session
    encoder: Session | None

    def memory(self, prompt: Prompt, names: Sequence[str]) -> Feeds | None:
        """Return what the encoder makes of a prompt; None without one."""
        if self.encoder is None or prompt.encoder is None:
            return None
        return run_half(self.encoder, _fit(self.encoder.inputs, prompt.encoder), names)

    @property
    def steps(self) -> Decoder:
        """The decoder, which takes its cache in any float type."""
        specs = self.decoder.inputs
        return Decoder(specs, lambda feeds, outputs: run_half(self.decoder, _fit(specs, feeds), outputs))


@dataclass(frozen=True, slots=True)
class TextModels:
    """A bundle that generates, open in both precisions."""

    bundle: Bundle
    generator: Generator
    half: Precision
    exact: Precision | None
    """None for a bundle without a reference."""


@contextlib.contextmanager
def text_models(
    bundle: Bundle, half: Session, reference: Session | None, device: Device = CPU, road: Road | None = None
) -> Iterator[TextModels | None]:
    """Open what the decoder's sessions need to generate texts; yields None for a bundle that does not generate.

    The half encoder runs on the `device`, or by the `road`. Raises as `half_session` and `open_generator` do.
    """
    generator = open_generator(bundle)
    if generator is None:
        yield None
        return
    encoder = bundle.encoder()
    with contextlib.ExitStack() as stack:
        halves, exacts = Precision(half, None), Precision(reference, None) if reference else None
        if encoder is not None:
            halves = Precision(half, stack.enter_context(half_session(encoder, device, road)))
            exact = stack.enter_context(reference_session(encoder))
            exacts = Precision(reference, exact) if reference and exact else None
        yield TextModels(bundle, generator, halves, exacts)


def evaluate_encoder(models: TextModels, budget: Budget) -> tuple[Evaluation | None, float | None]:
    """Evaluate the encoder on its golden sets, as `evaluate_golden` does; None for a model without one."""
    encoder = models.bundle.encoder()
    if encoder is None or models.half.encoder is None:
        return None, None
    exact = models.exact.encoder if models.exact else None
    found, drift = evaluate_golden(encoder, models.half.encoder, exact, budget)
    return replace(found, origin="the golden sets of the encoder"), drift


def promises(bundle: Bundle, budget: Budget) -> TextFacts:
    """Return what half has promised of its tokens: in the budget, and by what the export measured."""
    return TextFacts(budget.tokens, bundle.share_of_tokens())


def with_recorded_texts(golden: Evaluation, models: TextModels) -> Evaluation:
    """Return the evaluation on the golden sets with that on the texts of the export, if the bundle has any."""
    texts = read_texts(models.bundle, models.generator)
    if not texts:
        return golden
    found = [_follow(models, text.prompt, text) for text in texts]
    digest = digest_of([{"golden": np.array([golden.digest])}, *(text.arrays for text in texts)])
    return replace(_with_tokens(golden, found), digest=digest)


def evaluate_prompts(models: TextModels, data: Data) -> Evaluation:
    """Let FP32 continue the user's texts or sounds, and half follow. Raises SampleError for a row that cannot be read.

    InputError is raised for a bundle without a reference.
    """
    if models.exact is None:
        raise InputError(
            "the bundle holds no FP32 reference to generate beside",
            where=str(models.bundle.path),
            hint="export it without --no-reference, or check it without --data",
        )
    found, digests = [], []
    for prompt in _prompts(models, data.origin):
        found.append(_follow(models, _in_its_language(models.generator, prompt, models.exact)))
        digests.append(digest_of([RecordedText(prompt, ()).arrays]))
    nothing = Evaluation(data.origin, len(found), digest_of([{"texts": np.array(digests)}]), Comparison((), 0), ())
    return _with_tokens(nothing, found)


def _prompts(models: TextModels, origin: str) -> Iterator[Prompt]:
    rows = read_raw(origin, models.generator.inputs)
    for start in range(0, len(rows), ROWS_OF_A_SET):
        try:
            yield from models.generator.prepare(rows.part(start, start + ROWS_OF_A_SET))
        except InputError as error:
            raise SampleError(f"{error.message} (counted from row {start})", where=origin, hint=error.hint) from error


def _in_its_language(generator: Generator, prompt: Prompt, exact: Precision) -> Prompt:
    memory, steps = exact.memory(prompt, generator.memory_names), exact.steps
    return generator.in_its_language(
        prompt, steps.inputs, memory, lambda feeds: steps.run(feeds, [generator.rules.logits])
    )


def _follow(models: TextModels, prompt: Prompt, recorded: RecordedText | None = None) -> FollowedText:
    names = models.generator.memory_names
    exact = (models.exact.steps, models.exact.memory(prompt, names)) if models.exact else None
    half = (models.half.steps, models.half.memory(prompt, names))
    return follow_text(models.generator, prompt, exact, half, recorded.tokens if recorded else None)


def _with_tokens(evaluation: Evaluation, texts: Sequence[FollowedText]) -> Evaluation:
    tokens = token_agreement([text.steps for text in texts])
    return replace(evaluation, tokens=tokens, errors=(*evaluation.errors, _measure(texts)))


def _measure(texts: Sequence[FollowedText]) -> Measure:
    rows = [[sum(step.same for step in text.steps), len(text.steps)] for text in texts]
    return measure_of(TOKENS, "ratio", np.array(rows, np.float64), higher_is_better=True)


def _fit(specs: Sequence[TensorSpec], feeds: Feeds) -> Feeds:
    try:
        return check_feeds(specs, feeds, cast_floats=True)
    except DemiError as error:
        raise BundleError(f"a text does not fit the model: {error.message}", hint="export the model again") from error
