"""Servers under comparison: Demi and, if their interpreters are given, its peers, all with the same model file."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import orjson

from bench.serving.requests import first_row, grpc_request, http_request, post
from bench.serving.servers import Server, free_ports, peer_serving, serving, session_of
from demi.bundles.bundle import Bundle

SCRIPTS = Path(__file__).parent / "peers"
PEERS = ("triton", "mlserver", "litserve")


@dataclass(frozen=True)
class Subject:
    """A running server and its requests: over HTTP by form (JSON, binary), and over gRPC."""

    name: str
    server: Server
    http: Mapping[str, bytes] = field(default_factory=dict)
    grpc: bytes = b""


@contextlib.contextmanager
def demi(bundle: Bundle, threads: int, *flags: str) -> Iterator[Subject]:
    """Run Demi with HTTP and gRPC."""
    with serving(bundle.path, threads, "--grpc-port", "0", *flags) as server:
        yield Subject("demi", server, _protocol(bundle), grpc_request(bundle, first_row(bundle)))


@contextlib.contextmanager
def peer(name: str, python: Path, bundle: Bundle, threads: int) -> Iterator[Subject]:
    """Run a peer with the interpreter that it is installed for."""
    with tempfile.TemporaryDirectory() as folder:
        match name:
            case "triton":
                parameters = {"model": str(bundle.model_path), "threads": str(threads)}
                started = triton("Triton", python, bundle, Path(folder), "triton_model.py", parameters)
            case "mlserver":
                started = _mlserver(python, bundle, threads, Path(folder))
            case _:
                started = _litserve(python, bundle, threads)
        with started as subject:
            yield subject


@contextlib.contextmanager
def echo(bundle: Bundle) -> Iterator[Subject]:
    """Run a gRPC service that returns each message as it came: the limit of gRPC's library for Python."""
    (port,) = free_ports(1)
    command = [sys.executable, str(SCRIPTS / "grpc_echo.py"), str(port)]
    with session_of(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        if not process.stdout.readline():
            raise SystemExit("the echo service did not start")
        yield Subject("echo", Server(process, "127.0.0.1", 0, port), grpc=grpc_request(bundle, first_row(bundle)))


@contextlib.contextmanager
def triton(
    name: str, python: Path, bundle: Bundle, folder: Path, script: str, parameters: Mapping[str, str]
) -> Iterator[Subject]:
    """Run the C++ server of the package nvidia-pytriton with its Python backend and its own dynamic batching.

    The backend runs one of the scripts in `peers/` with these parameters, from files that it keeps in `folder`.
    """
    (package,) = python.parent.parent.glob("lib/python3*/site-packages/pytriton")
    home = package / "tritonserver"
    backends = folder / "backends"
    shutil.copytree(home / "backends", backends)
    (stub,) = (home / "python_backend_stubs" / package.parent.parent.name.removeprefix("python")).iterdir()
    shutil.copy(stub, backends / "python")
    model = folder / "models" / bundle.manifest.name
    (model / "1").mkdir(parents=True)
    shutil.copy(SCRIPTS / script, model / "1" / "model.py")
    (model / "config.pbtxt").write_text(_triton_config(bundle, parameters))
    http, grpc, metrics = free_ports(3)
    command = [str(home / "bin" / "tritonserver"), f"--model-repository={folder / 'models'}"]
    command += [f"--backend-directory={backends}", "--http-address=127.0.0.1", "--grpc-address=127.0.0.1"]
    command += [f"--http-port={http}", f"--grpc-port={grpc}", f"--metrics-port={metrics}", "--log-error=false"]
    libraries = package.parent / "nvidia_pytriton.libs"
    environ = {"PYTHONPATH": str(package.parent), "LD_LIBRARY_PATH": str(libraries)}
    with peer_serving(command, http, "/v2/health/ready", grpc, environ) as server:
        yield Subject(name, server, _protocol(bundle), grpc_request(bundle, first_row(bundle)))


def _triton_config(bundle: Bundle, parameters: Mapping[str, str]) -> str:
    def tensors(kind: str) -> str:
        specs = bundle.manifest.inputs if kind == "input" else bundle.manifest.outputs
        each = [
            f'{{ name: "{spec.name}" data_type: TYPE_{spec.dtype.value} dims: {spec.wire_shape[1:]} }}'
            for spec in specs
        ]
        return f"{kind} [ {', '.join(each)} ]"

    return "\n".join(
        [
            f'name: "{bundle.manifest.name}"',
            'backend: "python"',
            f"max_batch_size: {bundle.manifest.batch.max_size}",
            tensors("input"),
            tensors("output"),
            "dynamic_batching { }",
            *(
                f'parameters {{ key: "{key}" value: {{ string_value: {json.dumps(value)} }} }}'
                for key, value in parameters.items()
            ),
        ]
    )


@contextlib.contextmanager
def _mlserver(python: Path, bundle: Bundle, threads: int, folder: Path) -> Iterator[Subject]:
    """Run MLServer with a custom runtime, adaptive batching, and no worker processes."""
    http, grpc, metrics = free_ports(3)
    shutil.copy(SCRIPTS / "mlserver_model.py", folder)
    ports = {"host": "127.0.0.1", "http_port": http, "grpc_port": grpc, "metrics_port": metrics}
    (folder / "settings.json").write_bytes(orjson.dumps({**ports, "parallel_workers": 0, "debug": False}))
    settings = {
        "name": bundle.manifest.name,
        "implementation": "mlserver_model.OnnxModel",
        "max_batch_size": bundle.manifest.batch.max_size,
        "max_batch_time": 0.002,
        "parameters": {"uri": str(bundle.model_path), "extra": {"threads": threads}},
    }
    (folder / "model-settings.json").write_bytes(orjson.dumps(settings))
    command = [str(python.parent / "mlserver"), "start", str(folder)]
    ready = f"/v2/models/{bundle.manifest.name}/ready"
    with peer_serving(command, http, ready, environ={"PYTHONPATH": str(folder)}) as server:
        yield Subject("MLServer", server, {"JSON": _protocol(bundle)["JSON"]})


@contextlib.contextmanager
def _litserve(python: Path, bundle: Bundle, threads: int) -> Iterator[Subject]:
    """Run LitServe with batching, one worker, and its own JSON format."""
    (port,) = free_ports(1)
    command = [str(python), str(SCRIPTS / "litserve_app.py"), str(bundle.model_path), str(port), str(threads)]
    row = {name: values[0].tolist() for name, values in first_row(bundle).items()}
    request = post("/predict", orjson.dumps(row))
    with peer_serving([*command, str(bundle.manifest.batch.max_size)], port, "/health") as server:
        yield Subject("LitServe", server, {"JSON": request})


def _protocol(bundle: Bundle) -> dict[str, bytes]:
    row = first_row(bundle)
    return {form: http_request(bundle, row, binary=form == "binary") for form in ("binary", "JSON")}
