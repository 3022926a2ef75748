"""A trial of generation: the half decoder follows FP32's texts with a cache of its own, under the emulator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from demi.accuracy.token_agreement import TokenAgreement, token_agreement
from demi.calibration.emulation.widen import widen
from demi.calibration.follow_texts import Decoder, follow_text
from demi.calibration.samples import Samples
from demi.calibration.sessions import session_for
from demi.errors import OverBudgetError
from demi.exporter.conversion import Conversion, cast_feeds, emulate
from demi.exporter.generation.samples import Trial
from demi.generation.recorded import RecordedText
from demi.runtime.base import Session
from demi.runtime.options import FAITHFUL
from demi.tensors import Feeds


@dataclass(frozen=True, slots=True)
class Tried:
    """Agreement of half with FP32's texts, and these texts."""

    agreement: TokenAgreement
    texts: tuple[RecordedText, ...]


def measure_tokens(trial: Trial, fp32: ir.Model, conversion: Conversion, encoder: Conversion | None = None) -> Tried:
    """Return how many tokens half chooses as FP32 does, each after FP32's tokens so far.

    `encoder` is the conversion of the encoder, whose half outputs the half decoder reads.
    """
    kernels = conversion.planned.plan.kernels
    remembered = _half_memories(trial, encoder)
    with (
        session_for(fp32, settings=FAITHFUL) as exact,
        session_for(widen(conversion.lowered.model, fused=kernels), settings=FAITHFUL) as half,
    ):
        leader, follower = Decoder(exact.inputs, exact.run), _casting(half)
        found = [
            follow_text(trial.generator, prompt, (leader, memory), (follower, half_memory))
            for prompt, memory, half_memory in zip(trial.prompts, trial.memories, remembered, strict=True)
        ]
    pairs = zip(trial.prompts, found, strict=True)
    texts = tuple(RecordedText(prompt, text.tokens) for prompt, text in pairs if text.tokens)
    return Tried(token_agreement([text.steps for text in found]), texts)


def require_tokens(agreement: TokenAgreement, least: float | None) -> None:
    """Raise OverBudgetError if half has no choice somewhere, or fewer tokens are FP32's than the budget demands."""
    if agreement.non_finite:
        why = f"its logits are NaN or infinite at {agreement.non_finite:,} of them"
    elif least is not None and agreement.same < least:
        why = f"the budget demands {least:.2%}"
    else:
        return
    raise OverBudgetError(
        f"{agreement}; {why}",
        where="nothing was written",
        hint="set closer limits for the logits, such as --budget logits:relative_l2=1e-3, or keep nodes in FP32 with --keep-fp32",
    )


def _casting(half: Session) -> Decoder:
    """Return a half decoder that takes the memory and the cache in any float type."""
    return Decoder(half.inputs, lambda feeds, outputs: half.run(cast_feeds(half.inputs, feeds), outputs))


def _half_memories(trial: Trial, encoder: Conversion | None) -> Sequence[Feeds | None]:
    """Return what the half encoder makes of the prompts."""
    if encoder is None:
        return trial.memories
    samples = Samples(tuple(prompt.encoder for prompt in trial.prompts if prompt.encoder is not None), "prompts")
    return emulate(encoder.lowered.model, samples, encoder.planned.plan.kernels)
