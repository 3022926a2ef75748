"""Demi over HTTP beside ONNX Runtime in a bare loop, turn by turn in one run.

    python -m bench.serving --seconds 2 --rounds 3
    python -m bench.serving --bundle models/minilm --connections 1,32

Every connection sends its next request when it has its answer; each turn is bounded in time and stays on this machine's
loopback. The limit is the same model in this process without a server: batches of as many rows as there are
connections, up to the bundle's maximum, one after the other. Prints a Markdown table with the median of the rounds;
`CPU` is what the server's process used for one request, and `errors` counts every answer that is not 200.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from urllib.parse import urlsplit

import numpy as np
import onnx
import orjson
from onnx import TensorProto, helper, numpy_helper

from demi.budget import Budget
from demi.bundle import Bundle, Golden, open_bundle, seal, write_golden, writing
from demi.manifest import MODEL, SCHEMA, BatchSpec, Manifest, Provenance
from demi.runtime.base import CPU, Device
from demi.runtime.ort import SessionSettings, open_session
from demi.tensors import DType, Feeds
from server.binary_tensors import write_binary
from server.json_tensors import write_json
from server.stacking import concatenate

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
STARTED = re.compile(r"serving url=(\S+) ")


@dataclass(frozen=True)
class Turn:
    """What one turn measured: seconds for each request, and CPU seconds of whoever did the work."""

    latencies_s: list[float]
    seconds: float
    cpu_s: float
    errors: int = 0
    rows: int = 1
    """Rows of each request; more than one only without a server."""

    @property
    def rate(self) -> float:
        """Rows per second."""
        return len(self.latencies_s) * self.rows / self.seconds

    @property
    def cpu_ms(self) -> float:
        """CPU milliseconds for one row."""
        return 1000 * self.cpu_s / max(len(self.latencies_s) * self.rows, 1)

    def percentile_ms(self, percent: float) -> float:
        """A percentile of the latencies, in milliseconds."""
        return 1000 * float(np.percentile(self.latencies_s, percent)) if self.latencies_s else float("nan")


class Connection(asyncio.Protocol):
    """One keep-alive connection that sends the same request again and again, and remembers how long each took."""

    def __init__(self, request: bytes) -> None:
        self.latencies_s: list[float] = []
        self.errors = 0
        self.broken = False
        self._request = request
        self._received = b""
        self._sent_at = 0.0
        self._running = True
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the first request."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._send()

    def data_received(self, data: bytes) -> None:
        """Collect an answer; once it is whole, ask again."""
        self._received += data
        end = self._received.find(b"\r\n\r\n")
        if end < 0:
            return
        length = re.search(rb"content-length: (\d+)", self._received[:end].lower())
        if length is None or len(self._received) < end + 4 + int(length[1]):
            return
        self.latencies_s.append(time.perf_counter() - self._sent_at)
        self.errors += not self._received.startswith(b"HTTP/1.1 200")
        self._received = b""
        if self._running:
            self._send()

    def connection_lost(self, error: Exception | None) -> None:
        """Remember a connection that the server closed too early."""
        self.broken = self._running

    def stop(self) -> None:
        """Send nothing more."""
        self._running = False
        if self._transport:
            self._transport.close()

    def _send(self) -> None:
        assert self._transport is not None
        self._sent_at = time.perf_counter()
        self._transport.write(self._request)


@dataclass
class Server:
    """A running `demi serve`."""

    process: subprocess.Popen[str]
    host: str
    port: int

    def cpu_s(self) -> float:
        """CPU seconds its process has used so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / TICKS_PER_SECOND


@contextlib.contextmanager
def serving(models: Path, threads: int, *flags: str) -> Iterator[Server]:
    """A server of these bundles for the length of a block, on a free port of the loopback."""
    command = [sys.executable, "-m", "demi", "serve", str(models), "--port", "0", "--threads", str(threads), *flags]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        url = next((match[1] for line in process.stderr if (match := STARTED.search(line))), None)
        if url is None:
            raise SystemExit("the server did not start")
        address = urlsplit(url)
        yield Server(process, str(address.hostname), int(address.port or 0))
    finally:
        process.terminate()
        process.wait(20)


def measure_server(server: Server, request: bytes, connections: int, seconds: float) -> Turn:
    """One turn of requests over that many connections."""

    async def run() -> tuple[list[Connection], float, float]:
        loop = asyncio.get_running_loop()
        before, started = server.cpu_s(), time.perf_counter()
        pairs = [
            await loop.create_connection(lambda: Connection(request), server.host, server.port)
            for _ in range(connections)
        ]
        await asyncio.sleep(seconds)
        elapsed, used = time.perf_counter() - started, server.cpu_s() - before
        found = [protocol for _, protocol in pairs]
        for connection in found:
            connection.stop()
        await asyncio.sleep(0.05)
        return found, elapsed, used

    found, elapsed, used = asyncio.run(run())
    latencies = [latency for connection in found for latency in connection.latencies_s]
    return Turn(latencies, elapsed, used, sum(connection.errors + connection.broken for connection in found))


def measure_limit(bundle: Bundle, row: Feeds, rows: int, threads: int, seconds: float, device: Device = CPU) -> Turn:
    """One turn of the model alone, in batches of that many rows."""
    session = open_session(bundle.model_path, device, SessionSettings(threads=threads))
    feeds = concatenate([row] * rows)
    session.run(feeds)
    latencies = []
    cpu, started = time.process_time(), time.perf_counter()
    while (before := time.perf_counter()) - started < seconds:
        session.run(feeds)
        latencies.append(time.perf_counter() - before)
    return Turn(latencies, time.perf_counter() - started, time.process_time() - cpu, rows=rows)


def http_request(bundle: Bundle, row: Feeds, *, binary: bool) -> bytes:
    """An infer request with one row as the bytes that go over the wire."""
    specs = {spec.name: spec for spec in bundle.manifest.inputs}
    tail: list[bytes] = []
    inputs = []
    for name, values in row.items():
        entry: dict[str, object] = {"name": name, "shape": values.shape, "datatype": specs[name].dtype.value}
        if binary:
            tail.append(write_binary(values, specs[name].dtype))
            entry["parameters"] = {"binary_data_size": len(tail[-1])}
        else:
            entry["data"] = write_json(values, specs[name].dtype, name, refuse_non_finite=True)
        inputs.append(entry)
    message = {"inputs": inputs, "parameters": {"binary_data_output": binary}}
    head = orjson.dumps(message, option=orjson.OPT_SERIALIZE_NUMPY)
    length = f"Inference-Header-Content-Length: {len(head)}\r\n" if binary else ""
    body = head + b"".join(tail)
    path = f"/v2/models/{bundle.manifest.name}/infer"
    return f"POST {path} HTTP/1.1\r\nHost: localhost\r\n{length}Content-Length: {len(body)}\r\n\r\n".encode() + body


def first_row(bundle: Bundle) -> Feeds:
    """One row of the bundle's golden inputs."""
    golden = bundle.golden().inputs[0]
    return {name: np.ascontiguousarray(values[:1]) for name, values in golden.items()}


def write_mlp(path: Path) -> Path:
    """A bundle with the network of 784, 128 and 10 neurons that servers are often measured with."""
    rng = np.random.default_rng(0)

    def weights(name: str, *shape: int) -> onnx.TensorProto:
        return numpy_helper.from_array((rng.standard_normal(shape) / 28).astype(np.float32), name)

    graph = helper.make_graph(
        [
            helper.make_node("Gemm", ["x", "w1", "b1"], ["h"]),
            helper.make_node("Relu", ["h"], ["a"]),
            helper.make_node("Gemm", ["a", "w2", "b2"], ["logits"]),
        ],
        "mlp",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 784])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 10])],
        [weights("w1", 784, 128), weights("b1", 128), weights("w2", 128, 10), weights("b2", 10)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8).SerializeToString()
    session = open_session(model)
    x = {"x": rng.standard_normal((2, 784)).astype(np.float32)}
    provenance = Provenance("2026-01-01T00:00:00Z", "mlp.onnx", "0" * 64, {}, "none")
    with writing(path) as draft:
        (draft / MODEL).write_bytes(model)
        write_golden(draft, Golden([x], [session.run(x)]))
        batch = BatchSpec(free=True, max_size=64)
        inputs, outputs = session.inputs, session.outputs
        seal(draft, Manifest(SCHEMA, "mlp", 1, "fp16", inputs, outputs, batch, Budget(), provenance))
    return path


def bench_bundle(path: Path, counts: list[int], threads: int, seconds: float, rounds: int) -> Iterator[str]:
    """The rows of the table for one bundle."""
    bundle = open_bundle(path)
    row = first_row(bundle)
    if any(spec.dtype is DType.BYTES for spec in bundle.manifest.inputs):
        raise SystemExit("inputs of strings are not measured here")
    most = bundle.manifest.batch.max_size if bundle.manifest.batch.free else 1
    requests = {form: http_request(bundle, row, binary=form == "binary") for form in ("binary", "JSON")}
    with serving(bundle.path, threads) as server:
        measure_server(server, requests["binary"], 4, 0.5)  # connections, caches and allocators warm
        for count in counts:
            turns: dict[str, list[Turn]] = {"binary": [], "JSON": [], "limit": []}
            for _ in range(rounds):
                turns["limit"].append(measure_limit(bundle, row, min(count, most), threads, seconds))
                for form, request in requests.items():
                    turns[form].append(measure_server(server, request, count, seconds))
            limit = median(turn.rate for turn in turns["limit"])
            for name, found in turns.items():
                yield _row(bundle.manifest.name, count, name, found, limit)


def _row(model: str, connections: int, name: str, turns: list[Turn], limit: float) -> str:
    rate, p50, p99, cpu = (
        median(values)
        for values in zip(
            *((turn.rate, turn.percentile_ms(50), turn.percentile_ms(99), turn.cpu_ms) for turn in turns), strict=True
        )
    )
    cells = [model, str(connections), name, f"{rate:,.0f}", f"{rate / limit:.2f}", f"{p50:.2f}", f"{p99:.2f}"]
    return "| " + " | ".join([*cells, f"{cpu:.3f}", str(sum(turn.errors for turn in turns))]) + " |"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bundle", type=Path, action="append", default=[], help="another bundle to measure")
    parser.add_argument("--connections", default="1,8,32,64", help="numbers of connections, by commas")
    parser.add_argument("--threads", type=int, default=1, help="threads of one run, for the limit too")
    parser.add_argument("--seconds", type=float, default=2.0, help="length of one turn, at most 30")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each, at most 20")
    args = parser.parse_args()
    counts = [int(count) for count in args.connections.split(",")]
    seconds, rounds = min(args.seconds, 30.0), min(args.rounds, 20)
    print("| model | connections | what | requests/s | of limit | p50 ms | p99 ms | CPU ms | errors |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        for path in [write_mlp(Path(folder) / "mlp"), *args.bundle]:
            for line in bench_bundle(path, counts, args.threads, seconds, rounds):
                print(line, flush=True)


if __name__ == "__main__":
    main()
