"""Soak test: a minute of four times the load that a server can carry, without growth, errors or slow refusals.

    python -m bench.soak
    python -m bench.soak --bundle models/minilm/1 --seconds 60

First, 32 connections measure the rate that the server can carry. Then requests are sent at four times that rate (an open
loop), each on the connection that has been idle longest; a refused connection pauses, as the server's answer asks for.
Every answer is compared with the model's own answer in this process. Prints a report, and exits with 1 if memory grew by
more than 5% after the first seconds, an answer was wrong, a status other than 200 and 503 came, or more than one in a
hundred refusals took longer than 100 ms.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import orjson
import uvloop

from bench.serving.load import HttpClient, measure_http
from bench.serving.models import write_mlp
from bench.serving.requests import http_request
from bench.serving.servers import Server, serving
from demi.bundles.bundle import Bundle, open_bundle
from demi.runtime.onnxruntime.session import SessionSettings, open_session
from demi.tensors import Array, Feeds

TIMES = 4
SETTLED_S = 10.0
"""Time under load before memory is measured first, in seconds: buffers and arenas have reached their size by then."""
MAX_GROWTH = 0.05
SLOWEST_REFUSAL_S = 0.1
REST_S = 0.2
"""Time that a refused connection pauses, in seconds. The server asks for one second, and itself stops reading for a tenth."""
MAX_CONNECTIONS = 900
TOLERANCE = 1e-3
"""Relative L2 between an answer and the same row alone: batches of other sizes round differently."""


@dataclass(frozen=True)
class Case:
    """A request, and the expected elements of its first output."""

    request: bytes
    expected: Array


@dataclass
class Tally:
    """Answers and failures so far."""

    good_s: list[float] = field(default_factory=list)
    refused_s: list[float] = field(default_factory=list)
    wrong: int = 0
    failed: int = 0
    unsent: int = 0
    """Requests that found none of `MAX_CONNECTIONS` connections idle."""


class Client(HttpClient):
    """A connection with at most one request in flight; it returns to the idle ones after each answer."""

    def __init__(self, idle: deque[Client], tally: Tally) -> None:
        super().__init__()
        self._idle = idle
        self._tally = tally
        self._expected: Array | None = None
        self._sent_at = 0.0

    def send(self, case: Case) -> None:
        """Send a request."""
        assert self.transport is not None
        self._expected, self._sent_at = case.expected, time.perf_counter()
        self.transport.write(case.request)

    def answered(self, status: bytes, body: bytes) -> None:
        """Count an answer; a refused connection pauses for `REST_S`."""
        took_s = time.perf_counter() - self._sent_at
        if status == b"503":
            self._tally.refused_s.append(took_s)
        elif status != b"200" or self._expected is None:
            self._tally.failed += 1
        else:
            self._tally.good_s.append(took_s)
            self._tally.wrong += not is_right(body, self._expected)
        rest_s = REST_S if status == b"503" else 0.0
        asyncio.get_running_loop().call_later(rest_s, self._idle.append, self)

    def connection_lost(self, error: Exception | None) -> None:
        """Count a connection that the server closed as a failure."""
        self._tally.failed += not self.stopped


def is_right(body: bytes, expected: Array) -> bool:
    """Return whether a binary answer ends with these elements."""
    start = len(body) - expected.nbytes
    found = np.frombuffer(body, expected.dtype, offset=start) if start >= 0 else expected[:0]
    if found.shape != expected.shape:
        return False
    error = float(np.linalg.norm(found.astype(np.float64) - expected))
    return error <= TOLERANCE * float(np.linalg.norm(expected))


def make_cases(bundle: Bundle, count: int = 16) -> list[Case]:
    """Return rows of the golden inputs, each with the model's own answer. The model must have one output."""
    session = open_session(bundle.model_path, settings=SessionSettings(threads=1))
    cases: list[Case] = []
    for golden in bundle.golden().inputs:
        rows = len(next(iter(golden.values())))
        for row in range(min(rows, count - len(cases))):
            feeds: Feeds = {name: np.ascontiguousarray(values[row : row + 1]) for name, values in golden.items()}
            (output,) = session.run(feeds).values()
            cases.append(Case(http_request(bundle, feeds, binary=True), output.ravel()))
    return cases


async def overload(server: Server, cases: Sequence[Case], rate: float, seconds: float) -> tuple[Tally, float, float]:
    """Send `rate` requests per second for `seconds`. Return the tally, and the server's memory in MiB early and late."""
    loop = asyncio.get_running_loop()
    idle: deque[Client] = deque()
    tally = Tally()
    clients: list[Client] = []
    early = 0.0
    started, sent = time.perf_counter(), 0
    while (now := time.perf_counter() - started) < seconds:
        if not early and now >= min(SETTLED_S, seconds / 4):
            early = server.rss_mib()
        while sent < now * rate:
            sent += 1
            if idle:
                idle.popleft().send(cases[sent % len(cases)])
            elif len(clients) < MAX_CONNECTIONS:
                _, client = await loop.create_connection(lambda: Client(idle, tally), server.host, server.port)
                clients.append(client)
                client.send(cases[sent % len(cases)])
            else:
                tally.unsent += 1
        await asyncio.sleep(0.002)
    late = server.rss_mib()
    await asyncio.sleep(2.0)  # lets accepted requests be answered
    for client in clients:
        client.stop()
    return tally, early, late


def main() -> int:
    """Run the soak test, print the report, and return 1 if it failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bundle", type=Path, help="bundle with one output (default: a network of 127 MB)")
    parser.add_argument("--seconds", type=float, default=60.0, help="seconds of overload, at most 600")
    parser.add_argument("--threads", type=int, default=1, help="threads per run")
    parser.add_argument("--max-queue", type=int, default=64, help="requests that may wait in the queue")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bundle = open_bundle(args.bundle or write_mlp(Path(folder) / "wide", hidden=40_000))
        cases = make_cases(bundle)
        with serving(bundle.path, args.threads, "--max-queue", str(args.max_queue)) as server:
            carried = measure_http(server, [case.request for case in cases], 32, 4.0)
            tally, early, late = uvloop.run(overload(server, cases, TIMES * carried.rate, min(args.seconds, 600.0)))
    report = report_on(bundle.manifest.name, carried.rate, min(args.seconds, 600.0), tally, early, late)
    print(orjson.dumps(report, option=orjson.OPT_INDENT_2).decode())
    return 0 if report["passed"] else 1


def report_on(name: str, carried: float, seconds: float, tally: Tally, early: float, late: float) -> dict[str, object]:
    """Return the figures, and whether they pass."""
    p99_refused_s = float(np.percentile(tally.refused_s, 99)) if tally.refused_s else 0.0
    growth = late / early - 1 if early else float("nan")
    passed = (
        growth <= MAX_GROWTH
        and not tally.wrong
        and not tally.failed
        and len(tally.good_s) > 0
        and len(tally.refused_s) > 0
        and p99_refused_s <= SLOWEST_REFUSAL_S
    )
    return {
        "model": name,
        "seconds": seconds,
        "carried requests/s": round(carried, 1),
        "offered requests/s": round(TIMES * carried, 1),
        "answered requests/s": round(len(tally.good_s) / seconds, 1),
        "p99 of an answer, ms": round(1000 * float(np.percentile(tally.good_s, 99)), 1) if tally.good_s else None,
        "refused": len(tally.refused_s),
        "p99 of a refusal, ms": round(1000 * p99_refused_s, 1),
        "wrong": tally.wrong,
        "failed": tally.failed,
        "not sent": tally.unsent,
        "memory early, MiB": round(early, 1),
        "memory late, MiB": round(late, 1),
        "growth": round(growth, 4),
        "passed": passed,
    }


if __name__ == "__main__":
    sys.exit(main())
