"""The server's own trace and log settings under Triton's names: clients may read them, and change none.

What is traced and logged is decided when the server starts (`--otel`, `--log-level`, `--log-format`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from demi.server.errors import ForbiddenError, RequestError
from demi.server.settings import ServeSettings

Value = str | int | bool | list[str]

_LEVELS = ("debug", "info", "warning", "error")


def trace_settings(settings: ServeSettings) -> dict[str, Value]:
    """What is traced: with OpenTelemetry every inference, its times and no tensors, without a limit; else nothing."""
    on = settings.otel or bool(settings.otel_endpoint)
    return {
        "trace_level": ["TIMESTAMPS"] if on else ["OFF"],
        "trace_rate": "1",
        "trace_count": "-1",
        "log_frequency": "0",
        "trace_file": "",
        "trace_mode": "opentelemetry",
    }


def log_settings(settings: ServeSettings) -> dict[str, Value]:
    """What is logged, all of it to stderr."""
    level = _LEVELS.index(settings.log_level)
    return {
        "log_file": "",
        "log_info": level <= 1,
        "log_warning": level <= 2,
        "log_error": True,
        "log_verbose_level": int(level == 0),
        "log_format": settings.log_format,
    }


def read_settings(body: bytes) -> dict[str, Any]:
    """The settings that the body of a request names; RequestError where it is no JSON object."""
    if not body.strip():
        return {}
    try:
        return msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        raise RequestError(f"the settings are not as the protocol has them: {error}") from error


def check_unchanged(kind: str, asked: Mapping[str, Any], own: Mapping[str, Value]) -> None:
    """Raise RequestError for a setting that there is not, and ForbiddenError for one that would change.

    A setting that is cleared (None) goes back to what the server was started with, and that is what it is.
    """
    for name, value in asked.items():
        if name not in own:
            raise RequestError(f"there is no {kind} setting `{name}`", hint="there are " + ", ".join(own))
        if value is not None and _plain(value) != _plain(own[name]):
            raise ForbiddenError(
                f"clients cannot change the {kind} setting `{name}` of this server, which is {own[name]!r}",
                hint=f"start it with {_FLAGS[kind]}",
            )


_FLAGS = {"trace": "--otel or --otel-endpoint", "log": "--log-level and --log-format"}


def _plain(value: Any) -> tuple[type, Any]:
    """A value to compare: a single text is a list of one, and true is not 1."""
    return (
        (list, value)
        if isinstance(value, list)
        else (list, [value])
        if isinstance(value, str)
        else (type(value), value)
    )
