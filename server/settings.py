"""The settings of `demi serve`, one table row each: flags, environment variables and help texts are derived from it.

A flag overrides its variable, and a variable overrides the default. This module imports nothing heavy, since `--help`
needs it.
"""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_type_hints

from demi.byte_sizes import parse_bytes, show_bytes
from demi.engines.key import DEFAULT
from demi.errors import InputError
from demi.runtime.base import CPU, Device
from demi.runtime.options import RUNTIMES, RuntimeChoice
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
"""Kubernetes sets DEMI_PORT to an address like this in every pod beside a Service named `demi`; it is ignored."""

BYTES_PER_SECOND = 16 * 1024
"""A client must transfer at least this much: its time limit grows by one second for each 16 KiB that arrived, so that large
bodies on slow lines pass and one byte at a time does not."""

NonFinite = Literal["null", "error"]
EngineChoice = Literal["auto", "require", "off"]
PrecisionChoice = Literal["auto", "half"]
LogFormat = Literal["console", "json"]


@dataclass(frozen=True, slots=True)
class Setting:
    """One row of the table: flag, parser, help text and formatter. The default is that of the field."""

    flag: str
    parse: Callable[[str], Any]
    help: str
    show: Callable[[Any], str] = str

    @property
    def variable(self) -> str:
        """The environment variable: `DEMI_MAX_BODY` for `--max-body`."""
        return "DEMI_" + self.metavar

    @property
    def metavar(self) -> str:
        """The name of the value in the help text."""
        return self.flag.removeprefix("--").replace("-", "_").upper()

    def read(self, text: str, source: str) -> Any:
        """Parse `text`; InputError names the flag or variable that it came from."""
        try:
            return self.parse(text)
        except InputError as error:
            raise InputError(f"{source}: {error.message}", hint=error.hint) from error


@dataclass(frozen=True, slots=True)
class ServeSettings:
    """The settings of a server; each field is a row of the table."""

    decides_alone: ClassVar[bool] = True
    """True if drift is decided by this server's own samples."""

    host: Annotated[str, Setting("--host", str, "address to listen on; 0.0.0.0 for every interface")] = "127.0.0.1"
    port: Annotated[int, Setting("--port", parse_port, "port to listen on; 0 chooses a free one")] = 8000
    devices: Annotated[
        tuple[Device, ...],
        Setting(
            "--device",
            parse_devices,
            "cpu, cuda or cuda:N, or several separated by commas; never falls back silently",
            show_devices,
        ),
    ] = (CPU,)
    runtime: Annotated[
        RuntimeChoice,
        Setting(
            "--runtime",
            one_of(*RUNTIMES),
            "runtime for models on a CPU; auto uses OpenVINO for half if it was proved correct and faster on this machine",
        ),
    ] = "auto"
    precision: Annotated[
        PrecisionChoice,
        Setting(
            "--precision",
            one_of("auto", "half"),
            "auto serves the FP32 reference if half is not faster on this CPU; half always serves half",
        ),
    ] = "auto"
    emulate: Annotated[
        bool,
        Setting(
            "--emulate",
            parse_switch,
            "on a CPU, serve the answers that a GPU would give in half, with its roundings and overflows, for staging; slower "
            "than FP32; needs the extra `export`",
            show_switch,
        ),
    ] = False
    instances: Annotated[
        int, Setting("--instances", parse_positive, "instances of each model per device; all take from one queue")
    ] = 1
    grpc: Annotated[bool, Setting("--grpc", parse_switch, "also serve gRPC, on its own port", show_switch)] = True
    grpc_port: Annotated[
        int | None,
        Setting(
            "--grpc-port",
            parse_port,
            "port for gRPC, by default the one after --port (8001); 0 chooses a free one, as does --port 0",
            show_grpc_port,
        ),
    ] = None
    strict_device: Annotated[
        bool,
        Setting(
            "--strict-device",
            parse_switch,
            "on a GPU, refuse a model if any node other than shape arithmetic would run on the CPU",
            show_switch,
        ),
    ] = False
    engine: Annotated[
        EngineChoice,
        Setting(
            "--engine",
            one_of("auto", "require", "off"),
            "TensorRT engines of bundles: auto uses one that was built on this machine and fits, require fails without one, off "
            "uses none",
        ),
    ] = "auto"
    engine_key: Annotated[
        Path,
        Setting("--engine-key", Path, "file with this machine's key, which signs the engines and proofs that it made"),
    ] = DEFAULT
    device_memory_bytes: Annotated[
        int,
        Setting(
            "--device-memory",
            parse_limit,
            "most GPU memory that ONNX Runtime may keep per model; 0 means no limit",
            show_limit,
        ),
    ] = 0
    cuda_graphs: Annotated[
        bool,
        Setting(
            "--cuda-graphs",
            parse_switch,
            "record and replay CUDA graphs, for models whose shapes depend on the batch size only; batches are padded to a power "
            "of two",
            show_switch,
        ),
    ] = False
    threads: Annotated[int, Setting("--threads", parse_count, "CPU threads per model run; 0 means one per core")] = 0
    trial: Annotated[
        bool,
        Setting(
            "--trial",
            parse_switch,
            "load each model in a separate process first, so that a crash in native code does not take the server down",
            show_switch,
        ),
    ] = True
    load_timeout_s: Annotated[
        float,
        Setting(
            "--load-timeout",
            parse_seconds,
            "seconds a model may take to load and answer once in that process (see --trial); 0 means no limit",
            "{:g}".format,
        ),
    ] = 600.0
    max_body_bytes: Annotated[
        int, Setting("--max-body", parse_bytes, "largest request body, before and after decompression", show_bytes)
    ] = 64 * 2**20
    max_in_flight_bytes: Annotated[
        int,
        Setting(
            "--max-in-flight",
            parse_bytes,
            "bytes that all requests in flight may hold together, as sent and decompressed; beyond it the server answers 503; "
            "gRPC has the same limit again",
            show_bytes,
        ),
    ] = 512 * 2**20
    max_parsed_bytes: Annotated[
        int,
        Setting(
            "--max-parsed",
            parse_bytes,
            "memory that the numbers, strings and lists of one request may take, estimated before parsing; tensors sent as "
            "bytes do not count",
            show_bytes,
        ),
    ] = 128 * 2**20
    max_header_bytes: Annotated[
        int, Setting("--max-header", parse_bytes, "largest size of request line and headers together", show_bytes)
    ] = 32 * 2**10
    max_connections: Annotated[
        int,
        Setting(
            "--max-connections",
            parse_count,
            "open HTTP connections, and as many for gRPC; beyond it the connection that has been idle longest is closed, or "
            "the new one if none is idle; 0 means no limit",
        ),
    ] = 1000
    client_timeout_s: Annotated[
        float,
        Setting(
            "--client-timeout",
            parse_seconds,
            "seconds a client may take for a TLS handshake, to send a request or to read its answer, plus one for each "
            "16 KiB; 0 means no limit",
            "{:g}".format,
        ),
    ] = 20.0
    max_queue: Annotated[
        int,
        Setting(
            "--max-queue", parse_positive, "requests that may wait for one model; beyond it the server answers 503"
        ),
    ] = 256
    max_batch: Annotated[
        int,
        Setting("--max-batch", parse_count, "most rows per run; 0 means the limit of each bundle"),
    ] = 0
    max_generations: Annotated[
        int,
        Setting(
            "--max-generations",
            parse_positive,
            "texts that one model may generate at the same time, each with its cache; beyond it the server answers 503",
        ),
    ] = 64
    max_queue_delay_us: Annotated[
        int,
        Setting(
            "--max-queue-delay-us",
            parse_count,
            "microseconds to wait for a batch to fill while the device is idle; batches form anyway while it is busy",
        ),
    ] = 0
    timeout_s: Annotated[
        float,
        Setting(
            "--timeout",
            parse_seconds,
            "default timeout of a request in seconds, if it sets none itself; 0 means no limit",
        ),
    ] = 60.0
    stop_run_s: Annotated[
        float,
        Setting(
            "--stop-run",
            parse_seconds,
            "seconds after which a run is stopped once its last caller has left; 0 means never",
            "{:g}".format,
        ),
    ] = 5.0
    drain_s: Annotated[
        float,
        Setting(
            "--drain",
            parse_seconds,
            "seconds that running requests may take to finish when the server stops",
            "{:g}".format,
        ),
    ] = 30.0
    non_finite: Annotated[
        NonFinite,
        Setting(
            "--non-finite",
            one_of("null", "error"),
            "how to write NaN and infinity in JSON answers: as null, or refuse with an error that suggests binary output",
        ),
    ] = "null"
    api_key_file: Annotated[
        Path | None,
        Setting(
            "--api-key-file",
            parse_path,
            "file of API keys, one per line; every request except health checks must then carry one",
            show_optional,
        ),
    ] = None
    hosts: Annotated[
        tuple[str, ...],
        Setting(
            "--allow-host",
            parse_names,
            "comma-separated host names accepted besides IP addresses and names without a dot; without it, a server that "
            "other machines can reach accepts any name",
            show_names,
        ),
    ] = ()
    allow_without_key: Annotated[
        bool,
        Setting(
            "--allow-without-key",
            parse_switch,
            "permit --allow-model-control and --allow-shared-memory without API keys on an address that others can reach",
            show_switch,
        ),
    ] = False
    tls_cert: Annotated[
        Path | None,
        Setting("--tls-cert", parse_path, "certificate chain in PEM, for https; requires --tls-key", show_optional),
    ] = None
    tls_key: Annotated[
        Path | None, Setting("--tls-key", parse_path, "private key for --tls-cert, in PEM", show_optional)
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
            "let clients pass tensors in POSIX shared memory objects of this machine",
            show_switch,
        ),
    ] = False
    watch_s: Annotated[
        float,
        Setting(
            "--watch",
            parse_seconds,
            "seconds between checks for new, changed and removed bundles; 0 means never",
            "{:g}".format,
        ),
    ] = 0.0
    strict_readiness: Annotated[
        bool,
        Setting(
            "--strict-readiness",
            parse_switch,
            "report the server as not ready while any model version failed to load; by default it is ready if one model is, "
            "and none that was ready has failed",
            show_switch,
        ),
    ] = False
    metrics: Annotated[bool, Setting("--metrics", parse_switch, "serve /metrics for Prometheus", show_switch)] = True
    console: Annotated[
        bool, Setting("--console", parse_switch, "serve the console, a page about all models, at /", show_switch)
    ] = True
    guard: Annotated[
        bool,
        Setting(
            "--guard",
            parse_switch,
            "rerun a request in FP32 if its half-precision outputs are NaN or infinite",
            show_switch,
        ),
    ] = True
    keep_guarded: Annotated[
        str,
        Setting(
            "--keep-guarded", str, "folder in which to keep the inputs of requests that --guard had to rerun", show_text
        ),
    ] = ""
    shadow: Annotated[
        Shares,
        Setting(
            "--shadow",
            parse_shares,
            "share of requests to repeat in the other precision while the device is idle, to measure accuracy: 0.01, or "
            "0.01,NAME=0.1 for one model",
        ),
    ] = Shares()  # noqa: RUF009 - frozen
    on_drift: Annotated[
        Literal["log", "degrade", "fp32"],
        Setting(
            "--on-drift",
            one_of("log", "degrade", "fp32"),
            "what to do when sampled requests exceed the accuracy budget: log it, report the model as degraded, or serve it "
            "in FP32 until it recovers",
        ),
    ] = "log"
    reference_device: Annotated[
        Device | None,
        Setting(
            "--reference-device",
            Device.parse,
            "device for FP32 references, loaded when first needed; by default the model's device",
            show_device,
        ),
    ] = None
    otel: Annotated[
        bool,
        Setting(
            "--otel",
            parse_switch,
            "export an OpenTelemetry trace of every inference, as configured by the OTEL_... variables; needs the extra `otel`",
            show_switch,
        ),
    ] = False
    otel_endpoint: Annotated[
        str,
        Setting(
            "--otel-endpoint",
            parse_endpoint,
            "URL of a collector for traces (OTLP over HTTP); implies --otel",
            show_optional,
        ),
    ] = ""
    log_level: Annotated[
        str, Setting("--log-level", one_of("debug", "info", "warning", "error"), "debug, info, warning or error")
    ] = "info"
    log_format: Annotated[
        LogFormat,
        Setting(
            "--log-format", one_of("console", "json"), "console: human-readable lines; json: one JSON object per line"
        ),
    ] = "console"
    access_log: Annotated[
        bool, Setting("--access-log", parse_switch, "log every request and every refused connection", show_switch)
    ] = False

    @property
    def device(self) -> Device:
        """The first device."""
        return self.devices[0]

    @property
    def places(self) -> tuple[Device, ...]:
        """The device of each instance of a model."""
        return self.devices * self.instances

    @property
    def reference_place(self) -> Device:
        """The device of FP32 references."""
        return self.reference_device or self.device

    @property
    def grpc_listens_on(self) -> int:
        """The port for gRPC: as given, else the one after the HTTP port, or 0 (a free one) if that is 0 too."""
        if self.grpc_port is not None:
            return self.grpc_port
        return self.port + 1 if 0 < self.port < 65535 else 0


class ReplicaSettings(ServeSettings):
    """The settings of one server among several that decide together."""

    decides_alone: ClassVar[bool] = False

    @classmethod
    def of(cls, settings: ServeSettings, **changes: Any) -> ReplicaSettings:
        """Return the same settings for a server among several, some of them changed."""
        return cls(**{field.name: getattr(settings, field.name) for field in fields(settings)} | changes)


def table() -> dict[str, Setting]:
    """Return the row of each field of ServeSettings, in the order of the help text."""
    hints = get_type_hints(ServeSettings, include_extras=True)
    return {field.name: hints[field.name].__metadata__[0] for field in fields(ServeSettings)}


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add one flag per row to a parser; flags that are not given are absent from the parsed namespace."""
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
    """Read the settings from parsed flags and environment variables; InputError names the one that is invalid."""
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


def named_settings(values: Mapping[str, Any]) -> ServeSettings:
    """Return settings from values by the names in docs/settings.md: as text, spelled as on the command line, or as they are.

    Raises InputError for a setting that does not exist or has no such value.
    """
    rows = table()
    by_flag = {row.flag.removeprefix("--").replace("-", "_"): name for name, row in rows.items()}
    chosen: dict[str, Any] = {}
    for name, value in values.items():
        field = by_flag.get(name, name)
        if field not in rows:
            near = difflib.get_close_matches(name, by_flag, 1)
            raise InputError(
                f"`{name}` is not a setting of `demi serve`",
                hint=f"did you mean `{near[0]}`?" if near else "docs/settings.md lists them",
            )
        written = str(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else None
        chosen[field] = rows[field].read(written, name) if written is not None else value
    return replace(ServeSettings(), **chosen)
