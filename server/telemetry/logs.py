"""Log formats for stderr: lines for people, or JSON for machines.

In JSON, arguments named in the message are members too: `model loaded: name=%s` adds the member `name`.
"""

from __future__ import annotations

import logging
import re
import sys
import threading
from datetime import UTC, datetime
from typing import Any

import orjson

from demi.printable import printable, printable_json
from demi.server.settings import LogFormat

_PLACEHOLDER = re.compile(r"(?:(\w+)=)?%[-+ #0-9.]*[a-zA-Z]")
"""A placeholder in a message, with its name if it follows `name=`."""

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message"}
"""Attributes of every record; all others come from `extra`."""


class JsonFormatter(logging.Formatter):
    """One JSON object per line: ts, level, logger, message, named arguments and extras, and a traceback if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record as one line."""
        line: dict[str, Any] = {
            "ts": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        for name, value in (named_arguments(record) | extras(record)).items():
            line.setdefault(name, value)
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return printable_json(
            orjson.dumps(_replace_surrogates(line), default=_to_text, option=orjson.OPT_PASSTHROUGH_DATACLASS).decode()
        )


class ConsoleFormatter(logging.Formatter):
    """A line for people; extras are appended as `name=value`."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the name is logging's
        """Format the line without the traceback."""
        added = "".join(f" {name}={value}" for name, value in extras(record).items())
        return printable(super().formatMessage(record) + added)

    def formatException(self, ei: Any) -> str:  # noqa: N802 - the name is logging's
        """Format a traceback with a prefix on each line, so that an error message cannot fake a log record."""
        return "\n".join(f"  | {printable(line)}" for line in super().formatException(ei).split("\n"))


def start_logging(level: str, form: LogFormat, *, access: bool) -> None:
    """Log to stderr from `level` up, in this format; log single requests only with `access`."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if form == "json" else ConsoleFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler])
    logging.getLogger("demi.access").setLevel(logging.INFO if access else logging.WARNING)
    log_uncaught_errors()
    for noisy in ("uvicorn", "asyncio"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    # uvicorn would repeat, for each bad request, what the access log already contains.
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)


def log_uncaught_errors() -> None:
    """Log what Python would print to stderr itself: warnings, and uncaught errors in threads and finalizers."""
    logging.captureWarnings(True)
    log = logging.getLogger("demi.server")
    threading.excepthook = lambda args: log.critical("uncaught error in a thread", exc_info=args.exc_value)
    sys.unraisablehook = lambda args: log.error("uncaught error in a finalizer", exc_info=args.exc_value)


def named_arguments(record: logging.LogRecord) -> dict[str, Any]:
    """Return the named arguments of a message: `{"name": "m"}` for `"model loaded: name=%s", "m"`."""
    if not isinstance(record.args, tuple):
        return {}
    names = [match[1] for match in _PLACEHOLDER.finditer(str(record.msg).replace("%%", ""))]
    return {name: value for name, value in zip(names, record.args, strict=False) if name}


def extras(record: logging.LogRecord) -> dict[str, Any]:
    """Return the attributes that were given by `extra`."""
    return {name: value for name, value in vars(record).items() if name not in _STANDARD}


def _to_text(value: object) -> str:
    """Return the text of a value that orjson does not support, with lone surrogates replaced."""
    return str(value).encode("utf-8", "replace").decode()


def _replace_surrogates(line: dict[str, Any]) -> dict[str, Any]:
    """Replace lone surrogates, which a client may have sent and JSON cannot encode."""
    return {
        name: value.encode("utf-8", "replace").decode() if isinstance(value, str) else value
        for name, value in line.items()
    }
