"""Try a model from its page: texts, files, tensors or golden inputs, answered in both precisions."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import msgspec
import numpy as np

from demi.accuracy.compare import TensorDiff, compare
from demi.errors import DemiError
from demi.server.errors import RequestError, error_text
from demi.server.http.console.try_form import golden_inputs, listed
from demi.server.models.inference import infer
from demi.server.models.model import Model
from demi.server.protocol.answer import Answer, RequestedPrecision
from demi.server.protocol.body import read_request
from demi.server.protocol.float_widths import to_readable
from demi.server.protocol.json_message import read_message
from demi.server.protocol.request import InferRequest, OutputRequest
from demi.server.protocol.signature import Signature
from demi.server.settings import ServeSettings
from demi.server.threads import in_thread
from demi.tensors import Feeds, TensorSpec, check_feeds

SHOWN_ELEMENTS = 200
"""Most elements of an output that are shown."""


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
    is_answer: bool = False
    """True if it is made of the model's outputs, such as a label; the budget limits outputs only."""
    same: bool | None = None
    """True if an answer is the same in both precisions."""


@dataclass(frozen=True, slots=True)
class TryAnswer:
    """Both answers to one request."""

    half: Tried
    fp32: Tried
    outputs: list[TriedOutput]


async def try_model(model: Model, body: bytes, golden: int | None, settings: ServeSettings) -> TryAnswer:
    """Answer a request in half and in FP32, and compare the answers.

    `body` is an infer request in JSON; inputs that it does not have are taken from the golden set with that number. Each
    precision counts as a request. Raises RequestError or TensorError for inputs that do not fit, and UnavailableError for
    a model that is not ready.
    """
    model.check_ready()
    request = await in_thread(lambda: read_try(model, body, golden, settings.max_parsed_bytes))
    half, half_tried = await _ask(model, request, "half", settings.timeout_s)
    fp32, fp32_tried = await _ask(model, request, "fp32", settings.timeout_s)
    outputs = await in_thread(lambda: _outputs(model, request, half, fp32))
    return TryAnswer(half_tried, fp32_tried, outputs)


def read_try(model: Model, body: bytes, golden: int | None, most_parsed: int) -> InferRequest:
    """Return a request for all outputs: raw inputs with their answers, or tensors, completed from a golden set.

    Raises RequestError or TensorError.
    """
    signature = model.signature
    given = {each.name for each in read_message(body, most_parsed).inputs}
    raw = None
    feeds: Feeds = {}
    if given & {spec.name for spec in signature.raw}:
        raw = read_request(body, None, signature, most_parsed=most_parsed).raw
    else:
        feeds = _read_tensors(model, body, given, golden, most_parsed)
    specs = (*signature.answers, *signature.outputs) if raw else signature.outputs
    return InferRequest(feeds, tuple(OutputRequest(spec.name, binary=False) for spec in specs), raw=raw)


def _read_tensors(model: Model, body: bytes, given: set[str], golden: int | None, most_parsed: int) -> Feeds:
    signature = model.signature
    unknown = given - {spec.name for spec in signature.inputs}
    sent = tuple(spec for spec in signature.inputs if spec.name in given)
    feeds: Feeds = {}
    if given:
        part = signature if unknown else replace(signature, inputs=sent)
        feeds = read_request(body, None, part, most_parsed=most_parsed).feeds
    if golden is not None:
        presets = golden_inputs(model)
        if not 0 <= golden < len(presets):
            raise RequestError(f"there is no golden set {golden}", hint=f"the bundle holds {len(presets)}")
        feeds = {**presets[golden], **feeds}
    return check_feeds(signature.inputs, feeds, cast_floats=True)


async def _ask(
    model: Model, request: InferRequest, precision: RequestedPrecision, timeout_s: float
) -> tuple[Answer | None, Tried]:
    try:
        with model.admitted():
            answer = await infer(model, msgspec.structs.replace(request, precision=precision), timeout_s)
    except DemiError as error:
        return None, Tried(error=error_text(error))
    return answer, Tried(answer.precision, answer.compute_ns / 1e6)


def _outputs(model: Model, request: InferRequest, half: Answer | None, fp32: Answer | None) -> list[TriedOutput]:
    signature = model.signature
    diffs: dict[str, TensorDiff] = {}
    if half and fp32:
        found = compare([_readable(fp32, signature)], [_readable(half, signature)], model.loaded.budget)
        diffs = {diff.output: diff for diff in found.outputs}
    return [
        _answer(signature.output(name), half, fp32)
        if signature.is_answer(name)
        else _output(signature.output(name), half, fp32, diffs.get(name))
        for name in request.output_names
    ]


def _answer(spec: TensorSpec, half: Answer | None, fp32: Answer | None) -> TriedOutput:
    shown = _output(spec, half, fp32, None)
    is_same = bool(np.array_equal(half.outputs[spec.name], fp32.outputs[spec.name])) if half and fp32 else None
    return replace(shown, is_answer=True, same=is_same)


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
    return listed(answer.outputs[spec.name], spec.dtype, SHOWN_ELEMENTS) if answer else None


def _readable(answer: Answer, signature: Signature) -> Feeds:
    """Return the model's own outputs as float32 or wider."""
    return {spec.name: to_readable(answer.outputs[spec.name], spec.dtype) for spec in signature.outputs}
