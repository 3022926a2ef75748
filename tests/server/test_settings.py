"""The settings table: flags, variables and defaults."""

from __future__ import annotations

import argparse
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from demi.byte_sizes import parse_bytes, show_bytes
from demi.errors import InputError
from demi.runtime.base import CPU, Device
from demi.server.setting_values import Shares
from demi.server.settings import ServeSettings, add_flags, read_settings, table

EXAMPLES: dict[str, tuple[str, object]] = {
    "host": ("0.0.0.0", "0.0.0.0"),
    "port": ("0", 0),
    "devices": ("cuda:1,cuda:0", (Device("cuda", 1), Device("cuda", 0))),
    "runtime": ("openvino", "openvino"),
    "precision": ("half", "half"),
    "instances": ("2", 2),
    "grpc": ("off", False),
    "grpc_port": ("9001", 9001),
    "strict_device": ("on", True),
    "trial": ("off", False),
    "load_timeout_s": ("30", 30.0),
    "engine": ("require", "require"),
    "engine_key": ("/run/secrets/engine.key", Path("/run/secrets/engine.key")),
    "device_memory_bytes": ("2G", 2 * 2**30),
    "cuda_graphs": ("on", True),
    "threads": ("3", 3),
    "max_body_bytes": ("2G", 2 * 2**30),
    "max_in_flight_bytes": ("2G", 2 * 2**30),
    "max_parsed_bytes": ("64M", 64 * 2**20),
    "max_header_bytes": ("8K", 2**13),
    "max_connections": ("64", 64),
    "client_timeout_s": ("0.5", 0.5),
    "max_queue": ("7", 7),
    "max_batch": ("16", 16),
    "max_generations": ("8", 8),
    "max_queue_delay_us": ("500", 500),
    "timeout_s": ("0.5", 0.5),
    "stop_run_s": ("0.5", 0.5),
    "drain_s": ("0", 0.0),
    "non_finite": ("error", "error"),
    "api_key_file": ("keys.txt", Path("keys.txt")),
    "hosts": ("Models.example.com, other", ("models.example.com", "other")),
    "allow_without_key": ("on", True),
    "tls_cert": ("cert.pem", Path("cert.pem")),
    "tls_key": ("key.pem", Path("key.pem")),
    "allow_model_control": ("on", True),
    "allow_shared_memory": ("on", True),
    "watch_s": ("2.5", 2.5),
    "strict_readiness": ("on", True),
    "metrics": ("off", False),
    "console": ("off", False),
    "guard": ("off", False),
    "emulate": ("on", True),
    "keep_guarded": ("kept", "kept"),
    "shadow": ("0.01,m=0.5", Shares(0.01, {"m": 0.5})),
    "on_drift": ("fp32", "fp32"),
    "reference_device": ("cpu", CPU),
    "otel": ("on", True),
    "otel_endpoint": ("http://localhost:4318/v1/traces", "http://localhost:4318/v1/traces"),
    "log_level": ("debug", "debug"),
    "log_format": ("json", "json"),
    "access_log": ("on", True),
}


def settings_from(arguments: list[str], environ: dict[str, str] | None = None) -> ServeSettings:
    """Read settings from a command line and an environment."""
    parser = argparse.ArgumentParser()
    add_flags(parser)
    return read_settings(parser.parse_args(arguments), environ or {})


def test_defaults():
    """Without flags and variables all fields have their defaults."""
    assert ServeSettings() == settings_from([])


@pytest.mark.parametrize("name", list(table()))
def test_every_row_by_flag_and_by_variable(name):
    """Each setting can be given by flag and by variable, with the same result."""
    row = table()[name]
    text, value = EXAMPLES[name]
    switch = [row.flag] if value else ["--no-" + row.flag[2:]]
    flags = switch if isinstance(value, bool) else [row.flag, text]
    expected = replace(ServeSettings(), **{name: value})

    assert expected != ServeSettings()
    assert expected == settings_from(flags)
    assert expected == settings_from([], {row.variable: text})


def test_service_link_of_kubernetes_is_ignored():
    """The address in DEMI_PORT that Kubernetes sets beside a Service named `demi` is ignored."""
    environ = {"DEMI_PORT": "tcp://10.96.12.7:8000", "DEMI_GRPC_PORT": "udp://[fd00::1]:53"}

    assert ServeSettings() == settings_from([], environ)


def test_flag_overrides_variable():
    """A flag overrides its variable; a switch can be turned off by flag."""
    environ = {"DEMI_PORT": "1234", "DEMI_STRICT_DEVICE": "1"}
    settings = settings_from(["--port", "4321", "--no-strict-device"], environ)

    assert (4321, False) == (settings.port, settings.strict_device)


@pytest.mark.parametrize(
    ("flag", "text"),
    [
        ("--port", "65536"),
        ("--port", "-1"),
        ("--port", "http"),
        ("--grpc-port", "65536"),
        ("--device", "tpu"),
        ("--device", "cpu,cpu"),
        ("--instances", "0"),
        ("--shadow", "1.5"),
        ("--shadow", "=0.5"),
        ("--shadow", "a=b"),
        ("--threads", "1.5"),
        ("--max-body", "0"),
        ("--max-body", "64Q"),
        ("--max-queue", "0"),
        ("--max-batch", "-1"),
        ("--max-queue-delay-us", "1.5"),
        ("--timeout", "nan"),
        ("--timeout", "-1"),
        ("--drain", "soon"),
        ("--non-finite", "zero"),
        ("--log-level", "loud"),
        ("--log-format", "xml"),
        ("--max-header", "0"),
        ("--max-connections", "many"),
        ("--client-timeout", "-1"),
        ("--api-key-file", ""),
        ("--otel-endpoint", "localhost:4318"),
    ],
)
def test_invalid_values_name_their_source(flag, text):
    """The error names the flag or variable with the invalid value."""
    variable = "DEMI_" + flag[2:].replace("-", "_").upper()
    with pytest.raises(InputError, match=f"^{flag}: "):
        settings_from([f"{flag}={text}"])
    with pytest.raises(InputError, match=f"^{variable}: "):
        settings_from([], {variable: text})


@pytest.mark.parametrize(
    ("text", "count"), [("1048576", 2**20), ("512K", 2**19), ("64m", 2**26), ("64MiB", 2**26), ("1 GB", 2**30)]
)
def test_sizes(text, count):
    """Sizes accept the usual units, in powers of 1024."""
    assert count == parse_bytes(text)
    assert count == parse_bytes(show_bytes(count))


@pytest.mark.parametrize(
    ("arguments", "port"),
    [
        ([], 8001),
        (["--port", "9000"], 9001),
        (["--port", "0"], 0),
        (["--port", "9000", "--grpc-port", "8001"], 8001),
        (["--port", "9000", "--grpc-port", "0"], 0),
    ],
)
def test_the_port_for_grpc(arguments, port):
    """The gRPC port defaults to the one after --port."""
    assert port == settings_from(arguments).grpc_listens_on


def test_the_help_text_needs_no_server_package():
    """`demi --help` imports no web framework and no runtime."""
    code = (
        "import argparse, sys, demi.cli.serve as serve; serve.add_arguments(argparse.ArgumentParser());"
        "print(sorted({'fastapi', 'starlette', 'uvicorn', 'orjson', 'onnxruntime', 'grpc'} & set(sys.modules)))"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    assert "[]" == output.strip()
