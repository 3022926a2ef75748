"""The settings of `demi serve`: one row each, from which flags, environment variables and help all follow.

A flag wins over its variable, and a variable over the default. This module imports nothing heavy: the command line
reads it to answer `--help`.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

from demi.byte_sizes import parse_bytes, show_bytes
from demi.engines.key import DEFAULT
from demi.errors import InputError
from demi.runtime.base import CPU, Device
from demi.server.setting_values import (
    Shares,
    one_of,
    parse_count,
    parse_devices,
    parse_endpoint,
    parse_limit,
    parse_names,
    parse_path,
    parse_port,
    parse_positive,
    parse_seconds,
    parse_shares,
    parse_switch,
    show_device,
    show_devices,
    show_grpc_port,
    show_limit,
    show_names,
    show_optional,
    show_switch,
    show_text,
)

SERVICE_LINK = re.compile(r"(tcp|udp|sctp)://[^/]*:\d+$")
"""What Kubernetes writes into DEMI_PORT of every pod beside a Service named `demi`: an address, and no setting."""

NonFinite = Literal["null", "error"]
EngineChoice = Literal["auto", "require", "off"]
LogFormat = Literal["console", "json"]


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
    trial: Annotated[
        bool,
        Setting(
            "--trial",
            parse_switch,
            "load each model in another process first, so that one whose native code dies takes no other along",
            show_switch,
        ),
    ] = True
    load_timeout_s: Annotated[
        float,
        Setting(
            "--load-timeout",
            parse_seconds,
            "seconds a model gets in that process to load and to answer once; 0 is no limit",
            "{:g}".format,
        ),
    ] = 600.0
    max_body_bytes: Annotated[
        int, Setting("--max-body", parse_bytes, "largest request body, also after decompression", show_bytes)
    ] = 64 * 2**20
    max_in_flight_bytes: Annotated[
        int,
        Setting(
            "--max-in-flight",
            parse_bytes,
            "bytes that all requests under way may hold together, as sent and unpacked; beyond it the answer is 503; as "
            "much again over gRPC",
            show_bytes,
        ),
    ] = 512 * 2**20
    max_parsed_bytes: Annotated[
        int,
        Setting(
            "--max-parsed",
            parse_bytes,
            "memory that the numbers, texts and lists of one request may take, estimated before it is parsed; tensors sent "
            "as bytes do not count",
            show_bytes,
        ),
    ] = 128 * 2**20
    max_header_bytes: Annotated[
        int, Setting("--max-header", parse_bytes, "largest request line and headers together", show_bytes)
    ] = 32 * 2**10
    max_connections: Annotated[
        int,
        Setting(
            "--max-connections",
            parse_count,
            "open connections over HTTP, and as many over gRPC; beyond it the one that is idle longest is closed, else a "
            "new one; 0 is no limit",
        ),
    ] = 1000
    client_timeout_s: Annotated[
        float,
        Setting(
            "--client-timeout",
            parse_seconds,
            "seconds a client gets for a TLS handshake, to send a request or to read its answer, and one more for each "
            "16 KiB; 0 is no limit",
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
    stop_run_s: Annotated[
        float,
        Setting(
            "--stop-run",
            parse_seconds,
            "seconds a run may go on once nobody waits for its answer any more; then it is stopped; 0 is no limit",
            "{:g}".format,
        ),
    ] = 5.0
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
    hosts: Annotated[
        tuple[str, ...],
        Setting(
            "--allow-host",
            parse_names,
            "names by which the server may be asked besides addresses and names without a dot, by commas; any name where "
            "others reach it, unless given",
            show_names,
        ),
    ] = ()
    allow_without_key: Annotated[
        bool,
        Setting(
            "--allow-without-key",
            parse_switch,
            "let whoever reaches the server use --allow-model-control and --allow-shared-memory without an API key",
            show_switch,
        ),
    ] = False
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
    ] = Shares()  # noqa: RUF009 - frozen
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
        elif row.variable in environ and not SERVICE_LINK.match(environ[row.variable]):
            values[name] = row.read(environ[row.variable], row.variable)
    return ServeSettings(**values)


BYTES_PER_SECOND = 16 * 1024
"""A body or an answer gets one second more than `--client-timeout` for each of these bytes that arrived: a large one
on a slow line is welcome, one byte at a time is not."""
