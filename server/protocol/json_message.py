"""The JSON part of an infer request: where it ends, and what it says before any tensor is looked at."""

from __future__ import annotations

import json
import math
import re

import msgspec

from demi.server.errors import RequestError
from demi.server.protocol.json_size import check_weight
from demi.server.protocol.schemas import InferMessage

_MAY_BE_LONE = re.compile(rb"\\u[dD][89a-fA-F]")
"""How JSON escapes a surrogate: half of a character beyond 16 bits, and alone no text at all."""

_DECODER = msgspec.json.Decoder(InferMessage)


def read_length(text: str | None, body_length: int) -> int:
    """How many bytes of the body are JSON, by the header that says so; all of them where there is none."""
    if text is None:
        return body_length
    if not (text.isascii() and text.isdigit() and len(text) < 20) or int(text) > body_length:
        raise RequestError(
            f"Inference-Header-Content-Length is `{text[:40]}`, expected a number up to the body's {body_length} bytes"
        )
    return int(text)


def read_message(text: bytes, most_parsed: int = 2**63) -> InferMessage:
    """The message in a request's JSON; RequestError says where it is not as the protocol has it.

    Raises BodyTooLargeError, before anything is parsed, where the values could take more than `most_parsed` bytes.
    """
    check_weight(text, most_parsed)
    try:
        return _DECODER.decode(text)
    except msgspec.ValidationError as error:
        raise _not_the_protocol(error) from error
    except (msgspec.DecodeError, RecursionError, ValueError) as error:
        # Real clients send NaN and Infinity, which are not JSON: only for them is the lenient parser asked.
        if b"NaN" in text or b"Infinity" in text:
            return _read_lenient(text)
        raise _not_json(error) from error


def _read_lenient(text: bytes) -> InferMessage:
    try:
        found = json.loads(text.decode(), parse_float=_finite)
        if _MAY_BE_LONE.search(text):
            json.dumps(found, ensure_ascii=False).encode()  # UnicodeEncodeError, a ValueError, for half a character
        return msgspec.convert(found, InferMessage)
    except msgspec.ValidationError as error:
        raise _not_the_protocol(error) from error
    except (RecursionError, ValueError) as error:
        raise _not_json(error) from error


def _finite(text: str) -> float:
    if math.isinf(value := float(text)):
        raise ValueError(f"the number {text[:40]} is out of range")
    return value


def _not_json(error: Exception) -> RequestError:
    return RequestError(f"the request is not valid JSON: {error}")


def _not_the_protocol(error: Exception) -> RequestError:
    return RequestError(f"the request is not as the protocol has it: {error}")
