"""Parse and format the values of settings.

Each parser raises InputError, quoting the text, for values that it cannot parse.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from demi.byte_sizes import parse_bytes, show_bytes
from demi.errors import InputError
from demi.runtime.base import Device


@dataclass(frozen=True, slots=True)
class Shares:
    """Shares of requests, from 0 to 1: a default, and overrides for models by name."""

    default: float = 0.0
    models: Mapping[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        return ",".join([f"{self.default:g}", *(f"{name}={share:g}" for name, share in self.models.items())])

    def of(self, model: str) -> float:
        """Return the share for one model."""
        return self.models.get(model, self.default)


def parse_limit(text: str) -> int:
    """Parse a byte count as `parse_bytes` does, or 0 for no limit."""
    return 0 if text.strip() == "0" else parse_bytes(text)


def parse_port(text: str) -> int:
    """Parse a TCP port; 0 lets the system choose a free one."""
    if not re.fullmatch(r"\d{1,5}", text.strip(), re.ASCII) or int(text) > 65535:
        raise InputError(f"`{text}` is not a port", hint="use a number from 0 to 65535; 0 takes a free one")
    return int(text)


def parse_count(text: str) -> int:
    """Parse a whole number, zero or more."""
    if not re.fullmatch(r"\d{1,9}", text.strip(), re.ASCII):
        raise InputError(f"`{text}` is not a count", hint="use a whole number, zero or more")
    return int(text)


def parse_positive(text: str) -> int:
    """Parse a whole number, one or more."""
    if (count := parse_count(text)) == 0:
        raise InputError(f"`{text}` is not a positive count", hint="use a whole number, one or more")
    return count


def parse_seconds(text: str) -> float:
    """Parse a duration in seconds, zero or more."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not (math.isfinite(seconds) and seconds >= 0):
        raise InputError(f"`{text}` is not a duration", hint="use seconds, e.g. 30 or 0.5")
    return seconds


def parse_switch(text: str) -> bool:
    """Parse a switch as written in environment variables: 1, true, yes, on, or their opposites."""
    values = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
    if text.strip().lower() not in values:
        raise InputError(f"`{text}` is neither on nor off", hint="use 1 or 0")
    return values[text.strip().lower()]


def parse_devices(text: str) -> tuple[Device, ...]:
    """Parse a comma-separated list of distinct devices."""
    devices = tuple(Device.parse(part) for part in text.split(","))
    if len(set(devices)) != len(devices):
        raise InputError(
            f"`{text}` names a device twice", hint="use --instances to run a model several times on each device"
        )
    return devices


def parse_shares(text: str) -> Shares:
    """Parse a default share of requests and overrides by model: `0.01,minilm=0.1`."""
    default = 0.0
    models: dict[str, float] = {}
    for part in text.split(","):
        name, equals, value = part.rpartition("=")
        try:
            share = float(value)
        except ValueError:
            share = math.nan
        if not 0 <= share <= 1 or (equals and not name.strip()):
            raise InputError(
                f"`{part.strip()}` is not a share of requests", hint="use a number from 0 to 1, or NAME=0.1"
            )
        if equals:
            models[name.strip()] = share
        else:
            default = share
    return Shares(default, models)


def parse_path(text: str) -> Path:
    """Parse a file path."""
    if not text.strip():
        raise InputError("the path is empty", hint="give the path of a file")
    return Path(text)


def parse_names(text: str) -> tuple[str, ...]:
    """Parse a comma-separated list of host names, into lower case."""
    names = tuple(name.strip().lower() for name in text.split(",") if name.strip())
    for name in names:
        if not re.fullmatch(r"[a-z0-9._-]+", name):
            raise InputError(
                f"`{name}` is not a host name", hint="write it without scheme and port: models.example.com"
            )
    return names


def parse_endpoint(text: str) -> str:
    """Parse the URL of an OpenTelemetry collector; empty for none."""
    if text and not re.fullmatch(r"https?://\S+", text):
        raise InputError(
            f"`{text}` is not an http or https URL", hint="give the whole URL, e.g. http://localhost:4318/v1/traces"
        )
    return text


def one_of(*choices: str) -> Callable[[str], str]:
    """Return a parser that accepts one of these words."""

    def parse(text: str) -> str:
        if text.strip().lower() not in choices:
            raise InputError(f"unknown value `{text}`", hint="use one of " + ", ".join(choices))
        return text.strip().lower()

    return parse


def show_limit(count: int) -> str:
    """Format a byte count for `parse_limit`."""
    return show_bytes(count) if count else "0"


def show_devices(devices: tuple[Device, ...]) -> str:
    """Format devices for `parse_devices`."""
    return ",".join(map(str, devices))


def show_device(device: Device | None) -> str:
    """Format a device that defaults to that of the model."""
    return str(device) if device else "that of the model"


def show_text(text: str) -> str:
    """Format a text that may be empty."""
    return text or "none"


def show_optional(value: object) -> str:
    """Format a value that may be missing."""
    return str(value) if value else "none"


def show_names(names: tuple[str, ...]) -> str:
    """Format names for `parse_names`."""
    return ",".join(names) or "none"


def show_switch(on: bool) -> str:
    """Format a switch for `parse_switch`."""
    return "on" if on else "off"


def show_grpc_port(port: int | None) -> str:
    """Format the port for gRPC; None if it follows from the port for HTTP."""
    return "--port + 1" if port is None else str(port)
