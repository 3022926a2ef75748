"""A trial of generation: the half decoder follows FP32's texts with a cache of its own, under the emulator."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from demi.accuracy.compare import relative_l2
from demi.accuracy.token_agreement import Step, TokenAgreement, token_agreement
from demi.calibration.emulation.widen import widen
from demi.calibration.samples import Samples
from demi.calibration.sessions import session_for
from demi.errors import OverBudgetError
from demi.exporter.conversion import Conversion, cast_feeds, emulate
from demi.exporter.generation.samples import Trial
from demi.generation.generator import Continuation, Generator, Options
from demi.runtime.base import Session
from demi.runtime.options import FAITHFUL
from demi.tensors import Feeds

STEPS = 64
"""Most tokens of a text in the trial."""


def measure_tokens(
    trial: Trial, fp32: ir.Model, conversion: Conversion, encoder: Conversion | None = None
) -> TokenAgreement:
    """Return how many tokens half chooses as FP32 does, each after FP32's tokens so far.

    `encoder` is the conversion of the encoder, whose half outputs the half decoder reads.
    """
    kernels = conversion.planned.plan.kernels
    remembered = _half_memories(trial, encoder)
    with (
        session_for(fp32, settings=FAITHFUL) as exact,
        session_for(widen(conversion.lowered.model, fused=kernels), settings=FAITHFUL) as half,
    ):
        texts = []
        for prompt, memory, half_memory in zip(trial.prompts, trial.memories, remembered, strict=True):
            leader = trial.generator.begin(prompt, exact.inputs, memory, Options(STEPS))
            follower = trial.generator.begin(prompt, half.inputs, half_memory, Options(STEPS))
            texts.append(_follow(exact, half, leader, follower, trial.generator))
    return token_agreement(texts)


def require_tokens(agreement: TokenAgreement, least: float | None) -> None:
    """Raise OverBudgetError if fewer tokens are FP32's than the budget demands."""
    if least is None or agreement.same >= least:
        return
    raise OverBudgetError(
        f"half chooses {agreement.same:.2%} of {agreement.tokens} tokens as FP32 does, and the budget demands {least:.2%}: "
        f"the first difference is at step {agreement.first_difference}",
        where="nothing was written",
        hint="set closer limits for the logits, such as --budget logits:relative_l2=1e-3, or keep nodes in FP32 with --keep-fp32",
    )


def _half_memories(trial: Trial, encoder: Conversion | None) -> Sequence[Feeds | None]:
    """Return what the half encoder makes of the prompts."""
    if encoder is None:
        return trial.memories
    samples = Samples(tuple(prompt.encoder for prompt in trial.prompts if prompt.encoder is not None), "prompts")
    return emulate(encoder.lowered.model, samples, encoder.planned.plan.kernels)


def _follow(
    exact: Session, half: Session, leader: Continuation, follower: Continuation, generator: Generator
) -> list[Step]:
    """Return the steps of one text: half gets the tokens that FP32 chooses."""
    found = []
    logits = generator.rules.logits
    while not leader.finish:
        wanted = exact.run(leader.feeds, generator.outputs)
        got = half.run(cast_feeds(half.inputs, follower.feeds), generator.outputs)
        choice = follower.sequence.choose(got)
        leader.take(wanted)
        token = leader.sequence.tokens[-1]
        follower.sequence.force(token, got)
        error = relative_l2(np.asarray(wanted[logits], np.float32), np.asarray(got[logits], np.float32))
        found.append(Step(choice == token, float(error)))
    return found
