"""The settings of `demi serve`: one row each, from which flags, environment variables and help all follow.

A flag wins over its variable, and a variable over the default. This module imports nothing heavy: the command line
reads it to answer `--help`.
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

from demi.errors import InputError
from demi.runtime.base import CPU, Device
from demi.seal import DEFAULT

NonFinite = Literal["null", "error"]
EngineChoice = Literal["auto", "require", "off"]
LogFormat = Literal["console", "json"]

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}


@dataclass(frozen=True, slots=True)
class Setting:
    """One row of the table: how a setting is written, read and explained. Its default is that of its field."""

    flag: str
    parse: Callable[[str], Any]
    help: str
    show: Callable[[Any], str] = str

    @property
    def variable(self) -> str:
        """Its environment variable: `--max-body` is `DEMI_MAX_BODY`."""
        return "DEMI_" + self.metavar

    @property
    def metavar(self) -> str:
        """What its value is called in the help text."""
        return self.flag.removeprefix("--").replace("-", "_").upper()

    def read(self, text: str, source: str) -> Any:
        """The value of `text`; InputError names the flag or the variable it came from."""
        try:
            return self.parse(text)
        except InputError as error:
            raise InputError(f"{source}: {error.message}", hint=error.hint) from error


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


def parse_bytes(text: str) -> int:
    """A positive byte count such as `1048576`, `512K`, `64M`, `64MiB` or `2G`."""
    match = re.fullmatch(r"(\d+)\s*([KMG]?)(?:i?B)?", text.strip(), re.IGNORECASE | re.ASCII)
    if not match or int(match[1]) == 0:
        raise InputError(f"`{text}` is no size", hint="write a number with K, M or G, e.g. 64M")
    return int(match[1]) * _UNITS[match[2].upper()]


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


def show_bytes(count: int) -> str:
    """A byte count as `parse_bytes` reads it, in the largest unit that is exact."""
    unit = next(unit for unit in ("G", "M", "K", "") if count % _UNITS[unit] == 0)
    return f"{count // _UNITS[unit]}{unit}"


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


def show_switch(on: bool) -> str:
    """A switch as `parse_switch` reads it."""
    return "on" if on else "off"


def show_grpc_port(port: int | None) -> str:
    """The port for gRPC; None where it follows from the one for HTTP."""
    return "--port + 1" if port is None else str(port)


@dataclass(frozen=True, slots=True)
class ServeSettings:
    """How a server listens, what it accepts, and how patient it is. Every field is a row of the table."""

    host: Annotated[str, Setting("--host", str, "address to listen on; 0.0.0.0 for every interface")] = "127.0.0.1"
    port: Annotated[int, Setting("--port", parse_port, "port to listen on; 0 takes a free one")] = 8000
    devices: Annotated[
        tuple[Device, ...],
        Setting(
            "--device",
            parse_devices,
            "cpu, cuda or cuda:N, or several by commas; never falls back in silence",
            show_devices,
        ),
    ] = (CPU,)
    instances: Annotated[
        int, Setting("--instances", parse_positive, "instances of each model on each device, fed from one queue")
    ] = 1
    grpc: Annotated[bool, Setting("--grpc", parse_switch, "speak gRPC as well, on a port of its own", show_switch)] = (
        True
    )
    grpc_port: Annotated[
        int | None,
        Setting(
            "--grpc-port",
            parse_port,
            "port for gRPC, the one after --port (8001) unless given; 0 takes a free one, as it does after --port 0",
            show_grpc_port,
        ),
    ] = None
    strict_device: Annotated[
        bool,
        Setting(
            "--strict-device",
            parse_switch,
            "refuse a model of which any node but those that compute shapes would run on the CPU beside the GPU",
            show_switch,
        ),
    ] = False
    engine: Annotated[
        EngineChoice,
        Setting(
            "--engine",
            one_of("auto", "require", "off"),
            "TensorRT engines beside bundles: used where they were built here and fit, an error where not, or never used",
        ),
    ] = "auto"
    engine_key: Annotated[
        Path,
        Setting(
            "--engine-key", Path, "file with the key of this machine, which seals the engines that were built here"
        ),
    ] = DEFAULT
    device_memory_bytes: Annotated[
        int,
        Setting(
            "--device-memory",
            parse_limit,
            "most GPU memory that ONNX Runtime keeps for each model; 0 is no limit",
            show_limit,
        ),
    ] = 0
    cuda_graphs: Annotated[
        bool,
        Setting(
            "--cuda-graphs",
            parse_switch,
            "replay recorded kernels on a GPU, for models whose shapes follow from the batch; batches are filled up to a power of two",
            show_switch,
        ),
    ] = False
    threads: Annotated[int, Setting("--threads", parse_count, "CPU threads for one model run; 0 is one per core")] = 0
    max_body_bytes: Annotated[
        int, Setting("--max-body", parse_bytes, "largest request body, also after decompression", show_bytes)
    ] = 64 * 2**20
    max_header_bytes: Annotated[
        int, Setting("--max-header", parse_bytes, "largest request line and headers together", show_bytes)
    ] = 32 * 2**10
    max_connections: Annotated[
        int,
        Setting(
            "--max-connections",
            parse_count,
            "open connections; beyond it a new one gets 503 and is closed; 0 is no limit",
        ),
    ] = 1000
    client_timeout_s: Annotated[
        float,
        Setting(
            "--client-timeout",
            parse_seconds,
            "seconds a client gets to send a request or to read its answer, and one more for each 16 KiB; 0 is no limit",
            "{:g}".format,
        ),
    ] = 20.0
    max_queue: Annotated[
        int,
        Setting("--max-queue", parse_positive, "requests that may wait for one model; beyond it the answer is 503"),
    ] = 256
    max_batch: Annotated[
        int,
        Setting("--max-batch", parse_count, "rows that one run may take; 0 is what each bundle says"),
    ] = 0
    max_queue_delay_us: Annotated[
        int,
        Setting(
            "--max-queue-delay-us",
            parse_count,
            "microseconds a batch waits to fill while the device is free; batches form without it while the device runs",
        ),
    ] = 0
    timeout_s: Annotated[
        float,
        Setting("--timeout", parse_seconds, "seconds a request may take when it does not say so itself; 0 is no limit"),
    ] = 60.0
    drain_s: Annotated[
        float,
        Setting("--drain", parse_seconds, "seconds that running requests get when the server stops", "{:g}".format),
    ] = 30.0
    non_finite: Annotated[
        NonFinite,
        Setting(
            "--non-finite",
            one_of("null", "error"),
            "what NaN and infinities become in JSON answers: null, or an error that asks for binary output",
        ),
    ] = "null"
    api_key_file: Annotated[
        Path | None,
        Setting(
            "--api-key-file",
            parse_path,
            "file of API keys, one a line: every request but health needs one of them",
            show_optional,
        ),
    ] = None
    tls_cert: Annotated[
        Path | None,
        Setting("--tls-cert", parse_path, "certificate chain in PEM, for https; with --tls-key", show_optional),
    ] = None
    tls_key: Annotated[
        Path | None, Setting("--tls-key", parse_path, "private key of --tls-cert in PEM", show_optional)
    ] = None
    allow_model_control: Annotated[
        bool,
        Setting("--allow-model-control", parse_switch, "let clients load and unload models", show_switch),
    ] = False
    allow_shared_memory: Annotated[
        bool,
        Setting(
            "--allow-shared-memory",
            parse_switch,
            "let clients name POSIX shared memory objects of this machine for their tensors",
            show_switch,
        ),
    ] = False
    watch_s: Annotated[
        float,
        Setting(
            "--watch",
            parse_seconds,
            "look for new, changed and removed bundles every so many seconds; 0 is never",
            "{:g}".format,
        ),
    ] = 0.0
    metrics: Annotated[
        bool, Setting("--metrics", parse_switch, "answer /metrics with counts and times for Prometheus", show_switch)
    ] = True
    guard: Annotated[
        bool,
        Setting(
            "--guard",
            parse_switch,
            "answer in FP32 what half precision alone makes NaN or infinite",
            show_switch,
        ),
    ] = True
    keep_guarded: Annotated[
        str, Setting("--keep-guarded", str, "folder for the inputs of requests that the guard answered", show_text)
    ] = ""
    shadow: Annotated[
        Shares,
        Setting(
            "--shadow",
            parse_shares,
            "share of requests that also run in the other precision when the device is idle, to measure accuracy: 0.01, "
            "or 0.01,NAME=0.1 for one model",
        ),
    ] = Shares()
    on_drift: Annotated[
        Literal["log", "degrade", "fp32"],
        Setting(
            "--on-drift",
            one_of("log", "degrade", "fp32"),
            "what follows when sampled requests are over the accuracy budget: a line in the log, a model that is reported "
            "degraded, or traffic that moves to FP32 until it recovers",
        ),
    ] = "log"
    reference_device: Annotated[
        Device | None,
        Setting(
            "--reference-device",
            Device.parse,
            "where FP32 references run, once one is needed; by default where the model runs",
            show_device,
        ),
    ] = None
    otel: Annotated[
        bool,
        Setting(
            "--otel",
            parse_switch,
            "send a trace of every inference by OpenTelemetry, as its OTEL_... variables say; needs the extra `otel`",
            show_switch,
        ),
    ] = False
    otel_endpoint: Annotated[
        str,
        Setting(
            "--otel-endpoint",
            parse_endpoint,
            "URL that takes traces by OTLP over HTTP; turns --otel on",
            show_optional,
        ),
    ] = ""
    log_level: Annotated[
        str, Setting("--log-level", one_of("debug", "info", "warning", "error"), "debug, info, warning or error")
    ] = "info"
    log_format: Annotated[
        LogFormat, Setting("--log-format", one_of("console", "json"), "lines for people, or one JSON object a line")
    ] = "console"
    access_log: Annotated[
        bool, Setting("--access-log", parse_switch, "log every request, and every refused client", show_switch)
    ] = False

    @property
    def device(self) -> Device:
        """The first of the devices."""
        return self.devices[0]

    @property
    def places(self) -> tuple[Device, ...]:
        """The device of every instance of a model."""
        return self.devices * self.instances

    @property
    def reference_place(self) -> Device:
        """Where FP32 references run."""
        return self.reference_device or self.device

    @property
    def grpc_listens_on(self) -> int:
        """The port for gRPC: the one given, else the next one after the port for HTTP, or a free one where that is."""
        if self.grpc_port is not None:
            return self.grpc_port
        return self.port + 1 if 0 < self.port < 65535 else 0


def table() -> dict[str, Setting]:
    """The row of every field of ServeSettings, in the order of the help text."""
    hints = get_type_hints(ServeSettings, include_extras=True)
    return {field.name: hints[field.name].__metadata__[0] for field in fields(ServeSettings)}


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add one flag per row to a parser; a flag that is not given leaves no trace in the result."""
    defaults = ServeSettings()
    for name, row in table().items():
        default = row.show(getattr(defaults, name))
        text = f"{row.help} (default: {default}; or set {row.variable})".replace("%", "%%")
        if row.parse is parse_switch:
            switch = argparse.BooleanOptionalAction
            parser.add_argument(row.flag, action=switch, default=argparse.SUPPRESS, dest=name, help=text)
        else:
            parser.add_argument(row.flag, default=argparse.SUPPRESS, dest=name, metavar=row.metavar, help=text)


def read_settings(args: argparse.Namespace, environ: Mapping[str, str]) -> ServeSettings:
    """The settings from parsed flags and environment variables; InputError names the one that is wrong."""
    values: dict[str, Any] = {}
    for name, row in table().items():
        given: str | bool | None = getattr(args, name, None)
        if isinstance(given, bool):
            values[name] = given
        elif given is not None:
            values[name] = row.read(given, row.flag)
        elif row.variable in environ:
            values[name] = row.read(environ[row.variable], row.variable)
    return ServeSettings(**values)
