"""Try a model from its page: inputs from a form or from the golden inputs, answered in both precisions."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from demi.accuracy.compare import TensorDiff, compare
from demi.bundles.bundle import Golden
from demi.errors import DemiError
from demi.server.errors import RequestError, error_text
from demi.server.http.console.bundle_facts import bundle_of
from demi.server.models.model import Model
from demi.server.protocol.answer import Answer, RequestedPrecision
from demi.server.protocol.body import read_request
from demi.server.protocol.float_widths import to_readable
from demi.server.protocol.json_message import read_message
from demi.server.protocol.signature import Signature
from demi.server.settings import ServeSettings
from demi.server.threads import in_thread
from demi.tensors import Array, DType, Feeds, TensorSpec, check_feeds

FORM_ELEMENTS = 1024
"""Most elements of an input that are shown for editing; larger golden inputs are sent as they are."""

SHOWN_ELEMENTS = 200
"""Most elements of an output that are shown."""

MAX_PRESETS = 20
"""Most golden inputs that are offered."""


@dataclass(frozen=True, slots=True)
class FormInput:
    """One input of the form. `editor` names the widget of the page that fills it: `numbers`, `flags` or `text`."""

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
    """The form of a model: its inputs, and a preset of each for every golden set."""

    inputs: list[FormInput]
    presets: list[dict[str, Preset]]


@dataclass(frozen=True, slots=True)
class Tried:
    """The answer in one precision, or the reason why there is none."""

    precision: str = ""
    compute_ms: float | None = None
    error: str = ""


@dataclass(frozen=True, slots=True)
class TriedOutput:
    """One output in both precisions: the first `SHOWN_ELEMENTS` elements, and the difference over all of them."""

    name: str
    datatype: str
    shape: list[int]
    half: list[Any] | None
    fp32: list[Any] | None
    relative_l2: float | None = None
    max_abs: float | None = None
    top1: float | None = None
    non_finite: int = 0
    exceeded: tuple[str, ...] = ()
    """One sentence for each limit of the budget that this answer exceeds."""


@dataclass(frozen=True, slots=True)
class TryAnswer:
    """Both answers to one request."""

    half: Tried
    fp32: Tried
    outputs: list[TriedOutput]


def make_form(model: Model) -> Form:
    """Return the form of a ready model; without presets if its bundle holds no golden inputs."""
    signature = model.signature
    golden = bundle_of(model).golden_or_none() if model.path else None
    return Form(
        [FormInput(spec.name, spec.dtype.value, list(spec.shape), _editor(spec)) for spec in signature.inputs],
        [_presets(signature, feeds) for feeds in _golden_inputs(golden)[:MAX_PRESETS]],
    )


async def try_model(model: Model, body: bytes, golden: int | None, settings: ServeSettings) -> TryAnswer:
    """Answer a request in half and in FP32, and compare the answers.

    `body` is an infer request in JSON; inputs that it does not have are taken from the golden set with that number. Each
    precision counts as a request. Raises RequestError or TensorError for inputs that do not fit, and UnavailableError for
    a model that is not ready.
    """
    model.check_ready()
    feeds = await in_thread(lambda: read_feeds(model, body, golden, settings.max_parsed_bytes))
    half, half_tried = await _ask(model, feeds, "half", settings.timeout_s)
    fp32, fp32_tried = await _ask(model, feeds, "fp32", settings.timeout_s)
    outputs = await in_thread(lambda: _outputs(model, half, fp32))
    return TryAnswer(half_tried, fp32_tried, outputs)


def read_feeds(model: Model, body: bytes, golden: int | None, most_parsed: int) -> Feeds:
    """Return the inputs of a request, completed from a golden set. Raises RequestError or TensorError."""
    signature = model.signature
    given = {each.name for each in read_message(body, most_parsed).inputs}
    unknown = given - {spec.name for spec in signature.inputs}
    sent = tuple(spec for spec in signature.inputs if spec.name in given)
    feeds: Feeds = {}
    if given:
        part = signature if unknown else replace(signature, inputs=sent)
        feeds = read_request(body, None, part, most_parsed=most_parsed).feeds
    if golden is not None:
        presets = _golden_inputs(bundle_of(model).golden_or_none() if model.path else None)
        if not 0 <= golden < len(presets):
            raise RequestError(f"there is no golden set {golden}", hint=f"the bundle holds {len(presets)}")
        feeds = {**presets[golden], **feeds}
    return check_feeds(signature.inputs, feeds, cast_floats=True)


async def _ask(
    model: Model, feeds: Feeds, precision: RequestedPrecision, timeout_s: float
) -> tuple[Answer | None, Tried]:
    names = [spec.name for spec in model.signature.outputs]
    try:
        with model.admitted():
            answer = await model.infer(feeds, names, timeout_s, wish=precision)
    except DemiError as error:
        return None, Tried(error=error_text(error))
    return answer, Tried(answer.precision, answer.compute_ns / 1e6)


def _outputs(model: Model, half: Answer | None, fp32: Answer | None) -> list[TriedOutput]:
    signature = model.signature
    diffs: dict[str, TensorDiff] = {}
    if half and fp32:
        found = compare([_readable(fp32, signature)], [_readable(half, signature)], model.loaded.budget)
        diffs = {diff.output: diff for diff in found.outputs}
    return [_output(spec, half, fp32, diffs.get(spec.name)) for spec in signature.outputs]


def _output(spec: TensorSpec, half: Answer | None, fp32: Answer | None, diff: TensorDiff | None) -> TriedOutput:
    known = half or fp32
    shape = list(known.outputs[spec.name].shape) if known else []
    shown = TriedOutput(spec.name, spec.dtype.value, shape, _shown(spec, half), _shown(spec, fp32))
    if diff is None:
        return shown
    return replace(
        shown,
        relative_l2=diff.relative_l2,
        max_abs=diff.max_abs,
        top1=diff.top1,
        non_finite=diff.non_finite,
        exceeded=diff.exceeded,
    )


def _shown(spec: TensorSpec, answer: Answer | None) -> list[Any] | None:
    return _listed(answer.outputs[spec.name], spec.dtype, SHOWN_ELEMENTS) if answer else None


def _readable(answer: Answer, signature: Signature) -> Feeds:
    return {name: to_readable(values, signature.output(name).dtype) for name, values in answer.outputs.items()}


def _golden_inputs(golden: Golden | None) -> list[Feeds]:
    return golden.inputs if golden else []


def _presets(signature: Signature, feeds: Feeds) -> dict[str, Preset]:
    return {spec.name: _preset(spec, feeds[spec.name]) for spec in signature.inputs if spec.name in feeds}


def _preset(spec: TensorSpec, values: Array) -> Preset:
    is_small = values.size <= FORM_ELEMENTS
    data = _listed(values, spec.dtype, FORM_ELEMENTS) if is_small else None
    return Preset(list(values.shape), data, _summary(spec, values))


def _summary(spec: TensorSpec, values: Array) -> str:
    """Describe an array in words: `784 values from -0.42 to 2.8`."""
    if not values.size or spec.dtype in (DType.BYTES, DType.BOOL):
        return f"{values.size:,} values"
    readable = to_readable(values, spec.dtype)
    return f"{values.size:,} values from {readable.min():.4g} to {readable.max():.4g}"


def _editor(spec: TensorSpec) -> str:
    return {DType.BYTES: "text", DType.BOOL: "flags"}.get(spec.dtype, "numbers")


def _listed(values: Array, dtype: DType, most: int) -> list[Any]:
    """Return the first elements as JSON can hold them: text for strings, and for NaN and infinity."""
    if dtype is DType.BYTES:
        return [_text(each) for each in values.ravel()[:most].tolist()]
    first = np.ascontiguousarray(to_readable(values, dtype)).ravel()[:most].tolist()
    return [str(each) if isinstance(each, float) and not math.isfinite(each) else each for each in first]


def _text(value: str | bytes) -> str:
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else value
