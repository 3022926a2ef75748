"""How settings are written: what reads each kind of value from text, and what writes it again.

Every reader raises InputError, which quotes the text, for what it cannot read.
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
    """A share of requests, from 0 to 1: for every model, and others for models by name."""

    default: float = 0.0
    models: Mapping[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        return ",".join([f"{self.default:g}", *(f"{name}={share:g}" for name, share in self.models.items())])

    def of(self, model: str) -> float:
        """What holds for one model."""
        return self.models.get(model, self.default)


def parse_limit(text: str) -> int:
    """A byte count as `parse_bytes` reads it, or 0 for no limit."""
    return 0 if text.strip() == "0" else parse_bytes(text)


def parse_port(text: str) -> int:
    """A TCP port; 0 lets the system choose a free one."""
    if not re.fullmatch(r"\d{1,5}", text.strip(), re.ASCII) or int(text) > 65535:
        raise InputError(f"`{text}` is no port", hint="use a number from 0 to 65535; 0 takes a free one")
    return int(text)


def parse_count(text: str) -> int:
    """A whole number, zero or more."""
    if not re.fullmatch(r"\d{1,9}", text.strip(), re.ASCII):
        raise InputError(f"`{text}` is no count", hint="use a whole number, zero or more")
    return int(text)


def parse_positive(text: str) -> int:
    """A whole number, one or more."""
    if (count := parse_count(text)) == 0:
        raise InputError("this must be at least 1")
    return count


def parse_seconds(text: str) -> float:
    """A duration in seconds, zero or more."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not (math.isfinite(seconds) and seconds >= 0):
        raise InputError(f"`{text}` is no duration", hint="use seconds, e.g. 30 or 0.5")
    return seconds


def parse_switch(text: str) -> bool:
    """A switch as people write them in environment variables."""
    values = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
    if text.strip().lower() not in values:
        raise InputError(f"`{text}` is neither on nor off", hint="use 1 or 0")
    return values[text.strip().lower()]


def parse_devices(text: str) -> tuple[Device, ...]:
    """Devices by commas, each once."""
    devices = tuple(Device.parse(part) for part in text.split(","))
    if len(set(devices)) != len(devices):
        raise InputError(
            f"`{text}` names a device twice", hint="--instances says how often a model runs on each device"
        )
    return devices


def parse_shares(text: str) -> Shares:
    """A share of requests for every model, and others by model: `0.01,minilm=0.1`."""
    default = 0.0
    models: dict[str, float] = {}
    for part in text.split(","):
        name, equals, value = part.rpartition("=")
        try:
            share = float(value)
        except ValueError:
            share = math.nan
        if not 0 <= share <= 1 or (equals and not name.strip()):
            raise InputError(f"`{part.strip()}` is no share of requests", hint="use a number from 0 to 1, or NAME=0.1")
        if equals:
            models[name.strip()] = share
        else:
            default = share
    return Shares(default, models)


def parse_path(text: str) -> Path:
    """A file on this machine."""
    if not text.strip():
        raise InputError("an empty path names no file")
    return Path(text)


def parse_names(text: str) -> tuple[str, ...]:
    """Host names by commas, in lower case."""
    names = tuple(name.strip().lower() for name in text.split(",") if name.strip())
    for name in names:
        if not re.fullmatch(r"[a-z0-9._-]+", name):
            raise InputError(f"`{name}` is no host name", hint="write it without scheme and port: models.example.com")
    return names


def parse_endpoint(text: str) -> str:
    """A URL of a collector; empty for none."""
    if text and not re.fullmatch(r"https?://\S+", text):
        raise InputError(
            f"`{text}` is no http or https URL", hint="write it whole, e.g. http://localhost:4318/v1/traces"
        )
    return text


def one_of(*choices: str) -> Callable[[str], str]:
    """A parser that takes one of a few words."""

    def parse(text: str) -> str:
        if text.strip().lower() not in choices:
            raise InputError(f"unknown value `{text}`", hint="use one of " + ", ".join(choices))
        return text.strip().lower()

    return parse


def show_limit(count: int) -> str:
    """A byte count as `parse_limit` reads it."""
    return show_bytes(count) if count else "0"


def show_devices(devices: tuple[Device, ...]) -> str:
    """Devices as `parse_devices` reads them."""
    return ",".join(map(str, devices))


def show_device(device: Device | None) -> str:
    """A device that may be left to another setting."""
    return str(device) if device else "that of the model"


def show_text(text: str) -> str:
    """A text that may be empty."""
    return text or "none"


def show_optional(value: object) -> str:
    """A value that may be missing."""
    return str(value) if value else "none"


def show_names(names: tuple[str, ...]) -> str:
    """Names as `parse_names` reads them."""
    return ",".join(names) or "none"


def show_switch(on: bool) -> str:
    """A switch as `parse_switch` reads it."""
    return "on" if on else "off"


def show_grpc_port(port: int | None) -> str:
    """The port for gRPC; None where it follows from the one for HTTP."""
    return "--port + 1" if port is None else str(port)
