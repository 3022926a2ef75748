"""The form of a model on its page: its inputs with an editor of each, and golden inputs to begin with."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from demi.server.http.console.bundle_facts import bundle_of
from demi.server.models.model import Model
from demi.server.protocol.float_widths import to_readable
from demi.server.protocol.signature import Signature
from demi.tensors import Array, DType, Feeds, TensorSpec

FORM_ELEMENTS = 1024
"""Most elements of an input that are shown for editing; larger golden inputs are sent as they are."""

MAX_PRESETS = 20
"""Most golden inputs that are offered."""


RAW_EDITORS = {"text": "prose", "text_pair": "prose", "image": "image", "audio": "audio"}
"""Editors of raw inputs, by their names."""


@dataclass(frozen=True, slots=True)
class FormInput:
    """One input of the form. `editor` names the widget of the page that fills it: `numbers`, `flags` or `text` for tensors,
    `prose`, `image` or `audio` for raw inputs."""

    name: str
    datatype: str
    shape: list[int | str]
    editor: str


@dataclass(frozen=True, slots=True)
class Preset:
    """Value of one input in a golden set; `data` is None for more than `FORM_ELEMENTS` elements."""

    shape: list[int]
    data: list[Any] | None
    summary: str


@dataclass(frozen=True, slots=True)
class Form:
    """The form of a model: its inputs, a preset of each for every golden set, and the raw inputs that may replace them."""

    inputs: list[FormInput]
    presets: list[dict[str, Preset]]
    raw: list[FormInput]


def make_form(model: Model) -> Form:
    """Return the form of a ready model; without presets if its bundle holds no golden inputs."""
    signature = model.signature
    return Form(
        [FormInput(spec.name, spec.dtype.value, list(spec.shape), _editor(spec)) for spec in signature.inputs],
        [_presets(signature, feeds) for feeds in golden_inputs(model)[:MAX_PRESETS]],
        [
            FormInput(spec.name, spec.dtype.value, list(spec.shape), RAW_EDITORS.get(spec.name, "prose"))
            for spec in signature.raw
        ],
    )


def golden_inputs(model: Model) -> list[Feeds]:
    """Return the golden inputs of a model's bundle; empty if it holds none."""
    golden = bundle_of(model).golden_or_none() if model.path else None
    return golden.inputs if golden else []


def _presets(signature: Signature, feeds: Feeds) -> dict[str, Preset]:
    return {spec.name: _preset(spec, feeds[spec.name]) for spec in signature.inputs if spec.name in feeds}


def _preset(spec: TensorSpec, values: Array) -> Preset:
    is_small = values.size <= FORM_ELEMENTS
    data = listed(values, spec.dtype, FORM_ELEMENTS) if is_small else None
    return Preset(list(values.shape), data, _summary(spec, values))


def _summary(spec: TensorSpec, values: Array) -> str:
    """Describe an array in words: `784 values from -0.42 to 2.8`."""
    if not values.size or spec.dtype in (DType.BYTES, DType.BOOL):
        return f"{values.size:,} values"
    readable = to_readable(values, spec.dtype)
    return f"{values.size:,} values from {readable.min():.4g} to {readable.max():.4g}"


def _editor(spec: TensorSpec) -> str:
    return {DType.BYTES: "text", DType.BOOL: "flags"}.get(spec.dtype, "numbers")


def listed(values: Array, dtype: DType, most: int) -> list[Any]:
    """Return the first elements as JSON can hold them: text for strings, and for NaN and infinity."""
    if dtype is DType.BYTES:
        return [_text(each) for each in values.ravel()[:most].tolist()]
    first = np.ascontiguousarray(to_readable(values, dtype)).ravel()[:most].tolist()
    return [str(each) if isinstance(each, float) and not math.isfinite(each) else each for each in first]


def _text(value: str | bytes) -> str:
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else value
