"""What the server writes to stderr: lines for people, or JSON for machines.

A message such as `model loaded: name=%s` is one text to a person; in JSON its `name` is a member of its own besides.
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

_PLACES = re.compile(r"(?:(\w+)=)?%[-+ #0-9.]*[a-zA-Z]")
"""Where a message takes its arguments; those behind a `name=` have a name."""

_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message"}
"""What every record has; anything else was given by `extra`."""


class JsonFormatter(logging.Formatter):
    """One JSON object a line: ts, level, logger, message, the named arguments and extras, and a trace where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """A record as one line."""
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
            orjson.dumps(_sendable(line), default=_shown, option=orjson.OPT_PASSTHROUGH_DATACLASS).decode()
        )


class ConsoleFormatter(logging.Formatter):
    """A line for people; what was given by `extra` stands at its end as `name=value`."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the name is logging's
        """The line without its trace."""
        added = "".join(f" {name}={value}" for name, value in extras(record).items())
        return printable(super().formatMessage(record) + added)

    def formatException(self, ei: Any) -> str:  # noqa: N802 - the name is logging's
        """A trace whose lines all begin like no record does, whatever the words of the error are."""
        return "\n".join(f"  | {printable(line)}" for line in super().formatException(ei).split("\n"))


def start_logging(level: str, form: LogFormat, *, access: bool) -> None:
    """Write everything from `level` on to stderr in this form; single requests only where `access` wants them."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if form == "json" else ConsoleFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler])
    logging.getLogger("demi.access").setLevel(logging.INFO if access else logging.WARNING)
    record_all_else()
    for noisy in ("uvicorn", "asyncio"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    # uvicorn says once more, for every bad request, what the connection has told the client and the access log.
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)


def record_all_else() -> None:
    """Let what Python itself would print, warnings and the ends of threads, be records as well."""
    logging.captureWarnings(True)
    log = logging.getLogger("demi.server")
    threading.excepthook = lambda args: log.critical("a thread has died", exc_info=args.exc_value)
    sys.unraisablehook = lambda args: log.error("an error that nobody can catch", exc_info=args.exc_value)


def named_arguments(record: logging.LogRecord) -> dict[str, Any]:
    """The arguments that a message names: `{"name": "m"}` for `"model loaded: name=%s", "m"`."""
    if not isinstance(record.args, tuple):
        return {}
    names = [match[1] for match in _PLACES.finditer(str(record.msg).replace("%%", ""))]
    return {name: value for name, value in zip(names, record.args, strict=False) if name}


def extras(record: logging.LogRecord) -> dict[str, Any]:
    """What was given by `extra`."""
    return {name: value for name, value in vars(record).items() if name not in _OWN}


def _shown(value: object) -> str:
    """What orjson has no form for: its text, of which a lone surrogate must not lose the line either."""
    return str(value).encode("utf-8", "replace").decode()


def _sendable(line: dict[str, Any]) -> dict[str, Any]:
    """A lone surrogate in a name that a client sent must not lose the line about it."""
    return {
        name: value.encode("utf-8", "replace").decode() if isinstance(value, str) else value
        for name, value in line.items()
    }
