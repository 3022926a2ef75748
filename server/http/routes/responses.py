"""Error responses of routes, for the OpenAPI document."""

from __future__ import annotations

from typing import Any

from demi.server.protocol.schemas import ErrorBody

Responses = dict[int | str, dict[str, Any]]


def _error(status: int, description: str) -> Responses:
    return {status: {"model": ErrorBody, "description": description}}


BAD = _error(400, "The request does not follow the protocol")
FORBIDDEN = _error(403, "Not allowed by the server's settings")
UNKNOWN = _error(404, "No such model, version or region")
TOO_LARGE = _error(413, "The body is larger than the server's limit")
FAILED = _error(500, "The model failed; the server's log has the details under the request id in the message")
LATE = _error(504, "The deadline of the request has passed")
UNSUPPORTED = _error(501, "Not offered by this server")
NOT_READY = _error(503, "Not ready; the message says why")
