"""Read requests for generated texts: the tensors and parameters of Triton's vLLM and TensorRT-LLM backends.

`text_input` holds the texts, or `audio_input` the bytes of WAV and FLAC files, one element a row. Options are tensors of
one element, members of the JSON in `sampling_parameters`, or parameters of the request; in this order the first counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from demi.processing.prepared import RawRows
from demi.server.errors import RequestError
from demi.server.grpc.inference import ModelInferRequest
from demi.server.grpc.wire import data_reader, plain_parameters
from demi.server.models.generation import GenerateRequest, read_options
from demi.server.protocol.parameters import LARGEST, read_count, read_parameters, read_precision
from demi.server.protocol.request import MOST_RAW_ROWS, read_dtype, read_shape
from demi.server.protocol.schemas import InferInput
from demi.server.protocol.shared_memory import SharedMemory
from demi.tensors import Array, DType

INPUTS = {"text_input": "text", "audio_input": "audio"}
"""The inputs that hold rows, with the kind of generator that takes them."""

TEXT = "text_output"
EXTRA_OUTPUTS = {
    "finish_reason": "return_finish_reason",
    "num_input_tokens": "return_num_input_tokens",
    "num_output_tokens": "return_num_output_tokens",
}
"""Outputs beside the text, with the option that asks for each; it may also be named among the outputs."""

MOST_SAMPLING_BYTES = 1 << 16
"""Largest `sampling_parameters`."""

FLAGS = ("stream", "truncate", "exclude_input_in_output", *EXTRA_OUTPUTS.values())
COUNTS = ("max_tokens",)
TEXTS = ("stop", "stop_words", "language")

GREEDY_ONLY: dict[str, Sequence[float]] = {
    "temperature": (0,),
    "n": (1,),
    "best_of": (1,),
    "beam_width": (0, 1),
    "num_return_sequences": (0, 1),
    "repetition_penalty": (1,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "min_tokens": (0,),
    "min_length": (0,),
    "return_log_probs": (0,),
    "return_logprobs": (0,),
    "return_cumulative_logprob": (0,),
    "return_context_logits": (0,),
    "return_generation_logits": (0,),
}
"""Options that would choose other tokens or show more than the text, and the values that change nothing."""

WITHOUT_EFFECT = frozenset(
    {
        "top_k",
        "top_p",
        "runtime_top_k",
        "runtime_top_p",
        "seed",
        "random_seed",
        "len_penalty",
        "length_penalty",
        "pad_id",
    }
    | {"early_stopping", "ignore_eos_token", "skip_special_tokens"}
)
"""Options that change nothing where the most probable token is taken."""


@dataclass(frozen=True, slots=True)
class TextRequest:
    """A request for generated texts, and the form of its answers."""

    asked: GenerateRequest
    shape: tuple[int, ...]
    """Shape of the rows, which that of the texts follows."""
    stream: bool = False
    """Send each new piece of text in an answer of its own."""
    with_input: bool = False
    """Put each text before its continuation."""
    outputs: tuple[str, ...] = (TEXT,)


def asks_for_text(message: ModelInferRequest) -> bool:
    """Return whether a request has rows to continue or to answer, if its model generates."""
    return any(given.name in INPUTS for given in message.inputs)


def read_text_request(
    message: ModelInferRequest, kind: str, memory: SharedMemory, usual_timeout_s: float, left_s: float | None
) -> TextRequest:
    """Read a request for a generator of `kind` rows, `text` or `audio`. Its deadline is never beyond that of the call.

    Raises RequestError, naming the tensor or option that is wrong, or that asks for other tokens than the most probable.
    """
    tensors = _tensors(message, memory)
    parameters = read_parameters(plain_parameters(message.parameters, "the request"), "the request")
    name = next(each for each, rows in INPUTS.items() if rows == kind)
    if name not in tensors:
        raise RequestError(f"`{name}` is missing", hint=f"model `{message.model_name}` generates from {kind}")
    rows = tensors.pop(name)
    options = {**parameters, **_sampling(tensors.pop("sampling_parameters", None)), **tensors}
    _check_greedy(options)
    flags = {flag: _flag(options, flag) for flag in FLAGS}
    with_input = flags["exclude_input_in_output"] is False
    stream = bool(flags["stream"])
    if with_input and (stream or kind != "text"):
        raise RequestError(
            "`exclude_input_in_output` is false, but only a whole text can have its input before it",
            hint="leave it out, or send true",
        )
    if stream and rows.size != 1:
        raise RequestError(f"a streamed request has one row, not {rows.size}", hint="send each row in its own request")
    if not 0 < rows.size <= MOST_RAW_ROWS:
        raise RequestError(f"`{name}` has {rows.size} rows; 1 to {MOST_RAW_ROWS} are taken")
    stops = [*_texts(options, "stop"), *_texts(options, "stop_words")]
    languages = _texts(options, "language")
    if len(languages) > 1:
        raise RequestError("`language` must be one text")
    return TextRequest(
        GenerateRequest(
            RawRows(tuple(rows.ravel().tolist()), truncate=bool(flags["truncate"])),
            read_options(_count(options, "max_tokens"), stops, *languages),
            timeout_s(read_count(parameters, "timeout", "the request"), usual_timeout_s, left_s),
            read_precision(parameters),
            message.id,
        ),
        rows.shape,
        stream,
        with_input,
        _outputs(message, flags),
    )


def timeout_s(own_us: int | None, usual_s: float, left_s: float | None) -> float:
    """Return the timeout of a request: its own, else the usual one, but never beyond the deadline of the call."""
    own_s = own_us / 1e6 if own_us else usual_s
    return own_s if left_s is None else min(max(left_s, 1e-6), own_s or left_s)


def _tensors(message: ModelInferRequest, memory: SharedMemory) -> dict[str, Array]:
    """Return the input tensors by name, each checked against its kind."""
    known = [*INPUTS, "sampling_parameters", *FLAGS, *COUNTS, *TEXTS, "bad_words", *GREEDY_ONLY, *WITHOUT_EFFECT]
    raw = list(message.raw_input_contents)
    rest = list(reversed(raw))
    read = data_reader(rest, memory)
    found: dict[str, Array] = {}
    for each in message.inputs:
        contents = each.contents if each.HasField("contents") else msgspec.UNSET
        parameters = plain_parameters(each.parameters, f"input `{each.name}`")
        given = InferInput(each.name, list(each.shape), each.datatype, contents, parameters)
        if each.name not in known:
            raise RequestError(
                f"unknown input `{each.name}`", hint=f"for generated texts, send {', '.join(known[:10])}"
            )
        if each.name in found:
            raise RequestError(f"input `{each.name}` is sent twice")
        dtype, shape = read_dtype(given), read_shape(given)
        _check_kind(each.name, dtype)
        found[each.name] = read(given, dtype, shape, each.name == "audio_input")
    if rest:
        raise RequestError(f"raw_input_contents has {len(rest)} extra entries after the inputs")
    return found


def _check_kind(name: str, dtype: DType) -> None:
    """Raise RequestError for an input of the wrong datatype."""
    is_text = name in (*INPUTS, "sampling_parameters", "bad_words", *TEXTS)
    if is_text != (dtype is DType.BYTES) or (name in FLAGS and dtype is not DType.BOOL):
        wanted = "BYTES" if is_text else "BOOL" if name in FLAGS else "a number"
        raise RequestError(f"input `{name}` is {dtype.value}; {wanted} is expected")
    if name in COUNTS and (dtype.is_float or dtype is DType.BOOL):
        raise RequestError(f"input `{name}` is {dtype.value}; a whole number is expected")


def _sampling(given: Array | None) -> dict[str, Any]:
    """Return the options in `sampling_parameters`: an object of JSON."""
    if given is None:
        return {}
    text = _single(given, "sampling_parameters")
    if len(text) > MOST_SAMPLING_BYTES:
        raise RequestError(f"`sampling_parameters` has more than {MOST_SAMPLING_BYTES:,} characters")
    try:
        found = msgspec.json.decode(text, type=dict[str, Any])
    except (msgspec.MsgspecError, RecursionError) as error:
        raise RequestError(f"`sampling_parameters` is not an object of JSON: {error}") from error
    known = {*FLAGS, *COUNTS, *TEXTS, "bad_words", *GREEDY_ONLY, *WITHOUT_EFFECT}
    if unknown := sorted(found.keys() - known):
        raise RequestError(
            f"`sampling_parameters` holds `{unknown[0]}`, which is not known", hint="send max_tokens, stop or truncate"
        )
    return found


def _check_greedy(options: Mapping[str, Any]) -> None:
    """Raise RequestError for an option that asks for another choice of tokens than the most probable ones."""
    only_first = any(_number(options, name) == 1 for name in ("top_k", "runtime_top_k"))
    for name, plain in GREEDY_ONLY.items():
        value = _number(options, name)
        if value is None or value in plain or (name == "temperature" and only_first):
            continue
        raise RequestError(
            f"`{name}` is {value:g}, but texts are generated greedily, one for each row", hint=f"leave out `{name}`"
        )
    if any(_texts(options, "bad_words")):
        raise RequestError("`bad_words` are not supported: texts are generated greedily", hint="leave them out")


def _outputs(message: ModelInferRequest, flags: Mapping[str, bool | None]) -> tuple[str, ...]:
    """Return the names of the outputs: those that are named, else the text and what flags ask for."""
    named = [output.name for output in message.outputs]
    if unknown := [name for name in named if name != TEXT and name not in EXTRA_OUTPUTS]:
        raise RequestError(
            f"unknown output `{unknown[0]}`", hint=f"for generated texts: {', '.join((TEXT, *EXTRA_OUTPUTS))}"
        )
    for output in message.outputs:
        if "shared_memory_region" in output.parameters:
            raise RequestError(
                f"output `{output.name}` cannot be written to shared memory: its size is not known before"
            )
    asked = [name for name, flag in EXTRA_OUTPUTS.items() if flags[flag]]
    return tuple(dict.fromkeys([*(named or (TEXT,)), *asked]))


def _single(value: Any, name: str) -> Any:
    """Return the element of a tensor that has one, and any other value as it is."""
    if not isinstance(value, np.ndarray):
        return value
    if value.size != 1:
        raise RequestError(f"input `{name}` has {value.size} elements; one is expected")
    return value.ravel()[0].item() if value.dtype != object else value.ravel()[0]


def _flag(options: Mapping[str, Any], name: str) -> bool | None:
    """Return an option that is true or false, also as text; None if it is absent."""
    value = _single(options.get(name), name)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    raise RequestError(f"`{name}` must be true or false")


def _count(options: Mapping[str, Any], name: str) -> int | None:
    """Return an option that is a whole number; None if it is absent."""
    value = _number(options, name)
    if value is None:
        return None
    if value != int(value) or abs(value) > LARGEST:
        raise RequestError(f"`{name}` is {value:g}, which is not a whole number")
    return int(value)


def _number(options: Mapping[str, Any], name: str) -> float | None:
    """Return an option that is a number, also as text, as Triton's clients send it; None if it is absent."""
    value = _single(options.get(name), name)
    if value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = np.nan
    if not np.isfinite(number):
        raise RequestError(f"`{name}` must be a number")
    return number


def _texts(options: Mapping[str, Any], name: str) -> list[str]:
    """Return an option that is a text or several, of which empty ones stand for none."""
    value = options.get(name)
    found = value.ravel().tolist() if isinstance(value, np.ndarray) else [value] if isinstance(value, str) else value
    if found is None:
        return []
    if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
        raise RequestError(f"`{name}` must be a text, or a list of texts")
    return [each for each in found if each]
