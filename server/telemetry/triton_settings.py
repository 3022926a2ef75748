"""The server's trace and log settings under Triton's names, read-only for clients.

They are set when the server starts (`--otel`, `--log-level`, `--log-format`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from demi.server.errors import ForbiddenError, RequestError
from demi.server.settings import ServeSettings

Value = str | int | bool | list[str]

_LEVELS = ("debug", "info", "warning", "error")


def trace_settings(settings: ServeSettings) -> dict[str, Value]:
    """Return the trace settings: with OpenTelemetry the times of every inference, else nothing."""
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
    """Return the log settings; all output goes to stderr."""
    level = _LEVELS.index(settings.log_level)
    return {
        "log_file": "",
        "log_info": level <= 1,
        "log_warning": level <= 2,
        "log_error": True,
        "log_verbose_level": int(level == 0),
        "log_format": settings.log_format,
    }


def check_unchanged(kind: str, asked: Mapping[str, Any], own: Mapping[str, Value]) -> None:
    """Raise RequestError for an unknown setting, and ForbiddenError for one that would change.

    Clearing a setting (None) restores the value that the server was started with, which never changes, so it is accepted.
    """
    for name, value in asked.items():
        if name not in own:
            raise RequestError(f"unknown {kind} setting `{name}`", hint="use one of " + ", ".join(own))
        if value is not None and _comparable(value) != _comparable(own[name]):
            raise ForbiddenError(
                f"clients cannot change the {kind} setting `{name}` of this server from {own[name]!r}",
                hint=f"start it with {_FLAGS[kind]}",
            )


_FLAGS = {"trace": "--otel or --otel-endpoint", "log": "--log-level and --log-format"}


def _comparable(value: Any) -> tuple[type, Any]:
    """Return a value for comparison: a string equals a list of one, and true does not equal 1."""
    return (
        (list, value)
        if isinstance(value, list)
        else (list, [value])
        if isinstance(value, str)
        else (type(value), value)
    )
