"""Checks that the description of a generator fits the tensors of its decoder and encoder."""

from __future__ import annotations

from dataclasses import dataclass

from demi.errors import BundleError
from demi.processing.description import CachePair, EncoderDecoderGeneration, Generation
from demi.tensors import DType, TensorSpec


@dataclass(frozen=True, slots=True)
class Tensors:
    """The inputs and outputs of a decoder or an encoder."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


def check_generation(rules: Generation, decoder: Tensors, encoder: Tensors | None, where: str) -> None:
    """Raise BundleError, naming the first tensor or token that does not fit."""
    inputs = {spec.name: spec for spec in decoder.inputs}
    outputs = {spec.name: spec for spec in decoder.outputs}
    memory = rules.memory if isinstance(rules, EncoderDecoderGeneration) else ()
    filled = [rules.ids, *(pair.input for pair in (*rules.cache, *memory))]
    if len(set(filled)) < len(filled) or set(filled) != inputs.keys():
        raise _misfit(
            f"it fills the inputs {', '.join(sorted(filled))}, but the decoder has {', '.join(sorted(inputs))}", where
        )
    if missing := {rules.logits, *(pair.output for pair in rules.cache)} - outputs.keys():
        raise _misfit(f"it reads the output `{min(missing)}`, which the decoder does not have", where)
    ids, logits = inputs[rules.ids], outputs[rules.logits]
    if len(ids.shape) != 2 or ids.dtype not in (DType.INT64, DType.INT32):
        raise _misfit(f"it cannot fill the input {ids} with token ids", where)
    if len(logits.shape) != 2 or logits.dtype not in (DType.FP32, DType.FP16):
        raise _misfit(f"it cannot choose tokens from the output {logits}", where)
    _check_tokens(rules, logits, where)
    for pair in rules.cache:
        _check_cache(pair, inputs[pair.input], outputs[pair.output], where)
    if (encoder is None) is isinstance(rules, EncoderDecoderGeneration):
        raise _misfit("it needs an encoder" if encoder is None else "it has no use for the encoder", where)
    made = {spec.name: spec for spec in encoder.outputs} if encoder else {}
    for pair in memory:
        if pair.output not in made or len(made[pair.output].shape) != len(inputs[pair.input].shape):
            raise _misfit(f"the encoder has no output `{pair.output}` for the input {inputs[pair.input]}", where)


def _check_tokens(rules: Generation, logits: TensorSpec, where: str) -> None:
    size = logits.shape[1]
    languages = rules.languages if isinstance(rules, EncoderDecoderGeneration) else None
    spoken = languages.tokens.values() if languages else ()
    named = (*rules.start, *rules.ends, *rules.suppressed, *rules.suppressed_first, *spoken)
    if not isinstance(size, int):
        raise _misfit(f"the vocabulary of the output {logits} has no fixed size", where)
    if named and max(named) >= size:
        raise _misfit(f"it names token {max(named)}, but the vocabulary has {size}", where)


def _check_cache(pair: CachePair, taken: TensorSpec, made: TensorSpec, where: str) -> None:
    """Raise BundleError unless the cache has one free axis beside the first, and the same axes on its way back."""
    free = [axis for axis, dim in enumerate(taken.shape) if axis and isinstance(dim, str)]
    fixed = [dim for axis, dim in enumerate(taken.shape) if axis and axis not in free]
    same = [made.shape[axis] for axis in range(1, len(made.shape)) if axis not in free]
    if len(free) != 1 or len(taken.shape) != len(made.shape) or fixed != same or not taken.dtype.is_float:
        raise _misfit(f"the output {made} cannot be the cache {taken} of the next step", where)


def _misfit(why: str, where: str) -> BundleError:
    return BundleError(f"`processing.json` does not fit the bundle: {why}", where=where, hint="export it again")
