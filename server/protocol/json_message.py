"""Parse the JSON part of an infer request, before any tensor is checked."""

from __future__ import annotations

import contextlib
import json
import math
import re

import msgspec

from demi.server.errors import RequestError
from demi.server.protocol.json_body import not_the_protocol
from demi.server.protocol.json_size import check_weight
from demi.server.protocol.schemas import FloatMessage, InferMessage

_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
"""An escaped surrogate, half of a character beyond 16 bits; a lone one is not valid text."""

_DECODER = msgspec.json.Decoder(InferMessage)
_FLOAT_DECODER = msgspec.json.Decoder(FloatMessage)


def read_length(text: str | None, body_length: int) -> int:
    """Return the length of the JSON by the value of its header; the whole body if there is no header."""
    if text is None:
        return body_length
    if not (text.isascii() and text.isdigit() and len(text) < 20) or int(text) > body_length:
        raise RequestError(
            f"Inference-Header-Content-Length is `{text[:40]}`, expected a number up to the body's {body_length} bytes"
        )
    return int(text)


def read_message(text: bytes, most_parsed: int = 2**63, *, floats: bool = False) -> InferMessage:
    """Parse the JSON of a request; RequestError names the member that does not follow the protocol.

    With `floats`, a flat list of floats in each input is tried first: the parser then checks every element, in half the
    time. Raises BodyTooLargeError before parsing if the values could take more than `most_parsed` bytes of memory.
    """
    check_weight(text, most_parsed)
    if floats:
        with contextlib.suppress(msgspec.MsgspecError, RecursionError, ValueError):
            return _FLOAT_DECODER.decode(text)
    try:
        return _DECODER.decode(text)
    except msgspec.ValidationError as error:
        raise not_the_protocol(error) from error
    except (msgspec.DecodeError, RecursionError, ValueError) as error:
        # Real clients send NaN and Infinity, which are not JSON: use the slower, lenient parser for these only.
        if b"NaN" in text or b"Infinity" in text:
            return _read_lenient(text)
        raise _not_json(error) from error


def _read_lenient(text: bytes) -> InferMessage:
    try:
        found = json.loads(text.decode(), parse_float=_finite)
        if _SURROGATE.search(text):
            json.dumps(found, ensure_ascii=False).encode()  # UnicodeEncodeError, a ValueError, for a lone surrogate
        return msgspec.convert(found, InferMessage)
    except msgspec.ValidationError as error:
        raise not_the_protocol(error) from error
    except (RecursionError, ValueError) as error:
        raise _not_json(error) from error


def _finite(text: str) -> float:
    if math.isinf(value := float(text)):
        raise ValueError(f"the number {text[:40]} is out of range")
    return value


def _not_json(error: Exception) -> RequestError:
    return RequestError(f"the request is not valid JSON: {error}")
