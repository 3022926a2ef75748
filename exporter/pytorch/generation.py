"""Transformers' generating models as functions of flat tensors: a decoder's step with its cache, and an encoder."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from demi.errors import SourceError
from demi.exporter.passes.public_names import rename_axes, rename_inputs, rename_outputs
from demi.exporter.pytorch.errors import cause
from demi.exporter.pytorch.example import Example, as_feeds, as_numpy
from demi.exporter.pytorch.export import export_program
from demi.exporter.pytorch.half_weights import half_types, held
from demi.exporter.pytorch.verify import verify
from demi.exporter.sources.options import Source, SourceKind, SourceOptions
from demi.exporter.sources.transformers_folder import load_folder
from demi.tensors import Array, DType, Feeds, TensorSpec

SIDES = ("key", "value")


class DecoderStep(torch.nn.Module):
    """A step of a model without an encoder: ids INT64[batch, tokens] and its cache to logits of the last token and the cache."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self._options = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}

    def forward(self, input_ids: torch.Tensor, *past: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return logits FP32[batch, vocabulary], then keys and values of every layer [batch, heads, seen, size]."""
        found = self.model(
            input_ids=input_ids,
            attention_mask=causal_mask(input_ids, past[0]),
            past_key_values=cache_of(past),
            use_cache=True,
            **self._options,
        )
        return (found.logits[:, -1], *tensors_of(found.past_key_values))


def causal_mask(input_ids: torch.Tensor, past: torch.Tensor) -> torch.Tensor:
    """Return what hides later tokens: FP32[1, 1, tokens, seen], 0 or the lowest number."""
    seen, tokens = past.shape[-2], input_ids.shape[-1]
    rows = torch.arange(tokens)[:, None] + seen
    later = torch.arange(seen + tokens)[None, :] > rows
    return torch.where(later, torch.finfo(past.dtype).min, 0.0)[None, None]


def cache_of(past: Sequence[torch.Tensor]) -> Any:
    """Return transformers' cache with these keys and values, which alternate."""
    from transformers.cache_utils import DynamicCache, DynamicLayer

    cache = DynamicCache()
    for keys, values in zip(past[::2], past[1::2], strict=True):
        layer: Any = DynamicLayer()  # type: ignore[no-untyped-call]
        layer.keys, layer.values = keys, values
        layer.dtype, layer.device, layer.is_initialized = keys.dtype, keys.device, True
        cache.layers.append(layer)
    return cache


def tensors_of(cache: Any) -> tuple[torch.Tensor, ...]:
    """Return keys and values of a cache's layers, alternating."""
    return tuple(side for layer in cache.layers for side in (layer.keys, layer.values))


def load_generator(path: Path, task: str) -> tuple[Any, tuple[str, ...]]:
    """Return the model of a folder, in eval mode and FP32, with attention that can be traced; and the half types it had.

    Raises SourceError as `load_folder` does.
    """
    model = load_folder(path, task)
    had = half_types(held(model))
    model.float()
    model.set_attn_implementation("eager")
    model.config.use_cache = True
    return model, had


GENERATES = (
    "name its task with --task: models that generate are decoders such as GPT-2, and encoder-decoders such as T5"
)


def decoder_step(model: Any, path: Path) -> tuple[DecoderStep, tuple[TensorSpec, ...]]:
    """Return the step of a model without an encoder, and the inputs of its cache, found by running it once.

    Raises SourceError for a model whose cache is not made of keys and values that grow by a row for each token.
    """
    try:
        with torch.no_grad():
            cache = model(input_ids=torch.zeros(1, 3, dtype=torch.long), use_cache=True).past_key_values
        found = [(tuple(layer.keys.shape), tuple(layer.values.shape)) for layer in cache.layers]
    except Exception as error:
        raise SourceError(
            f"the model does not generate with a cache of keys and values: {cause(error)}",
            where=str(path),
            hint=GENERATES,
        ) from error
    kinds = {type(layer).__name__ for layer in cache.layers}
    if kinds != {"DynamicLayer"}:
        raise SourceError(
            f"the model's cache has layers of another kind: {', '.join(sorted(kinds))}",
            where=str(path),
            hint="models with full attention in every layer are generated from, such as GPT-2 and Llama",
        )
    specs = tuple(
        cache_spec(f"past_key_values.{index}.{side}", shape, "past")
        for index, shapes in enumerate(found)
        for side, shape in zip(SIDES, shapes, strict=True)
    )
    return DecoderStep(model).eval(), specs


def cache_spec(name: str, shape: Sequence[int], axis: str) -> TensorSpec:
    """Return the spec of keys or values of one layer; `axis` names the axis of tokens."""
    return TensorSpec(name, DType.FP32, ("batch", shape[1], axis, shape[3]))


def ids_spec() -> TensorSpec:
    """Return the spec of a decoder's ids."""
    return TensorSpec("input_ids", DType.INT64, ("batch", "tokens"))


def trace(
    module: Any,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[str],
    example: Sequence[torch.Tensor],
    options: SourceOptions,
    path: Path,
) -> Source:
    """Return a module of flat tensors as an ONNX model with these names, compared with PyTorch on `example`.

    Every axis with a name is free; the example must have at least two elements along it. Raises SourceError where PyTorch
    cannot export it, or where the results differ.
    """
    first, *rest = (
        {axis: torch.export.Dim.AUTO for axis, dim in enumerate(spec.shape) if isinstance(dim, str)} for spec in inputs
    )
    call = Example(tuple(example), {}, (first, tuple(rest)) if rest else (first,), {})
    model = export_program(module, call, options, path).model
    rename_inputs(model, [spec.name for spec in inputs])
    feeds = as_feeds(call, [value.name for value in model.graph.inputs], path)
    rename_axes(model, {spec.name: spec.shape for spec in inputs})
    rename_outputs(model, outputs)
    error = verify(model, model, module, call, feeds, path)
    return Source(model, SourceKind.TRANSFORMERS, (), error)


def example_tensors(specs: Sequence[TensorSpec], seed: int = 0) -> list[torch.Tensor]:
    """Return tensors to trace with: zeros for ids, small normal floats, and different sizes for axes of different names."""
    sizes: dict[str, int] = {"batch": 2}
    for spec in specs:
        for dim in spec.shape:
            if isinstance(dim, str):
                sizes.setdefault(dim, len(sizes) + 2)
    source = torch.Generator().manual_seed(seed)
    found = []
    for spec in specs:
        shape = [dim if isinstance(dim, int) else sizes[dim] for dim in spec.shape]
        if spec.dtype.is_float:
            found.append(torch.randn(shape, generator=source))
        else:
            found.append(torch.ones(shape, dtype=torch.long))
    return found


def run_module(module: Any, specs: Sequence[TensorSpec], outputs: Sequence[str], feeds: Feeds) -> dict[str, Array]:
    """Return a module's outputs by name for one set of inputs."""
    with torch.no_grad():
        found = module(*(torch.from_numpy(feeds[spec.name]) for spec in specs))
    return {name: as_numpy(value) for name, value in zip(outputs, found, strict=True)}


class EncoderMemory(torch.nn.Module):
    """An encoder with what its decoder reads of it: keys and values of cross-attention, computed once for all steps."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return keys and values of every decoder layer [batch, heads, source, size] for ids or features."""
        from transformers.cache_utils import DynamicCache, EncoderDecoderCache

        hidden = self.model.get_encoder()(values)[0]
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        first = torch.zeros(hidden.shape[0], 1, dtype=torch.long)
        self.model(decoder_input_ids=first, encoder_outputs=(hidden,), past_key_values=cache, use_cache=True)
        return tensors_of(cache.cross_attention_cache)


class EncoderDecoderStep(torch.nn.Module):
    """A step of a decoder: ids, its cache and the encoder's memory to logits of the last token and the longer cache."""

    def __init__(self, model: Any, width: int) -> None:
        super().__init__()
        self.model = model
        self._width = width

    def forward(self, input_ids: torch.Tensor, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return logits FP32[batch, vocabulary], then the cache; `tensors` are the cache and then as much memory."""
        from transformers.cache_utils import EncoderDecoderCache

        past, memory = tensors[: len(tensors) // 2], tensors[len(tensors) // 2 :]
        cache = EncoderDecoderCache(cache_of(past), cache_of(memory))
        cache.is_updated = dict.fromkeys(range(len(past) // 2), True)
        unread = torch.zeros(input_ids.shape[0], memory[0].shape[-2], self._width)
        found = self.model(
            decoder_input_ids=input_ids,
            decoder_attention_mask=causal_mask(input_ids, past[0]),
            encoder_outputs=(unread,),
            past_key_values=cache,
            use_cache=True,
        )
        return (found.logits[:, -1], *tensors_of(cache.self_attention_cache))


def encoder_decoder(
    model: Any, encoder_input: TensorSpec, example: torch.Tensor, path: Path
) -> tuple[EncoderMemory, EncoderDecoderStep, tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Return encoder and step, and the specs of the step's cache and memory, found by running them once.

    Raises SourceError for a model that does not generate with a cache of keys and values.
    """
    encoder = EncoderMemory(model).eval()
    try:
        with torch.no_grad():
            memory = encoder(example)
            hidden = model.get_encoder()(example)[0]
    except Exception as error:
        raise SourceError(
            f"the model does not generate with a cache of keys and values: {cause(error)}",
            where=str(path),
            hint=GENERATES,
        ) from error
    free = any(isinstance(dim, str) for dim in encoder_input.shape[1:])
    names = [f"{index}.{{}}.{side}" for index in range(len(memory) // 2) for side in SIDES]
    shapes = [tuple(each.shape) for each in memory]
    past = tuple(
        cache_spec(f"past_key_values.{name.format('decoder')}", shape, "past")
        for name, shape in zip(names, shapes, strict=True)
    )
    crossed = tuple(
        TensorSpec(
            f"past_key_values.{name.format('encoder')}",
            DType.FP32,
            ("batch", shape[1], "source" if free else shape[2], shape[3]),
        )
        for name, shape in zip(names, shapes, strict=True)
    )
    return encoder, EncoderDecoderStep(model, hidden.shape[-1]).eval(), past, crossed
