"""Sections of `python -m bench.serving`, one per question. Each yields lines of Markdown."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from functools import partial
from statistics import median

import numpy as np

from bench.serving.load import measure_grpc, measure_http
from bench.serving.models import measure_limit
from bench.serving.requests import first_row, http_request
from bench.serving.runtimes import openvino, resized
from bench.serving.servers import Server, serving
from bench.serving.setup import Setup
from bench.serving.subjects import Subject, demi, echo, peer
from bench.serving.turns import Turn, Turns, line, table
from demi.bundles.bundle import Bundle

SCRAPE = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
MANY = 256
QUEUE = 64


def throughput(bundle: Bundle, setup: Setup) -> Iterator[str]:
    """Measure every server and wire beside the bare loop, in alternating turns."""
    row = first_row(bundle)
    most = bundle.manifest.batch.max_size if bundle.manifest.batch.joins else 1
    names = ["model", "connections", "server", "wire", "requests/s", "of limit", "p50 ms", "p99 ms", "CPU ms", "errors"]
    yield table(names)
    with contextlib.ExitStack() as stack:
        subjects = [stack.enter_context(demi(bundle, setup.threads))]
        subjects += [stack.enter_context(peer(*each, bundle, setup.threads)) for each in setup.peers.items()]
        for subject in subjects:
            for request in subject.http.values():  # warms connections, caches and allocators
                measure_http(subject.server, [request], 4, 0.5)
        for count in setup.counts:
            measures = {
                ("raw loop", ""): partial(measure_limit, bundle, row, min(count, most), setup.threads, setup.seconds)
            }
            for subject in subjects:
                measures |= _measures(subject, count, setup.seconds)
            found = {key: Turns([]) for key in measures}
            for _ in range(setup.rounds):
                for key, measure in measures.items():
                    found[key].turns.append(measure())
            limit = found["raw loop", ""]
            for (server, wire), turns in found.items():
                yield line([bundle.manifest.name, count, server, wire, *_figures(turns, limit)])


def _measures(subject: Subject, count: int, seconds: float) -> dict[tuple[str, str], partial[Turn]]:
    measures = {
        (subject.name, form): partial(measure_http, subject.server, [request], count, seconds)
        for form, request in subject.http.items()
    }
    if subject.grpc:
        measures[subject.name, "gRPC"] = partial(measure_grpc, subject.server, subject.grpc, count, seconds)
    return measures


def _figures(turns: Turns, limit: Turns) -> list[object]:
    return [
        f"{turns.rate:,.0f}",
        f"{turns.ratio(limit):.2f}",
        f"{turns.percentile_ms(50):.2f}",
        f"{turns.percentile_ms(99):.2f}",
        f"{turns.cpu_ms:.3f}",
        turns.errors,
    ]


def grpc(bundle: Bundle, setup: Setup, connections: int = 32) -> Iterator[str]:
    """Measure gRPC beside a service that only returns each message: the limit of gRPC's library for Python."""
    yield table(["model", "server", "requests/s", "of the echo's", "CPU ms", "its CPU / echo's", "errors"])
    with contextlib.ExitStack() as stack:
        subjects = [stack.enter_context(echo(bundle)), stack.enter_context(demi(bundle, setup.threads))]
        found = {subject.name: Turns([]) for subject in subjects}
        for round_ in range(setup.rounds + 1):
            for subject in subjects:
                turn = measure_grpc(subject.server, subject.grpc, connections, setup.seconds)
                if round_:  # the first round is warm-up
                    found[subject.name].turns.append(turn)
        limit = found["echo"]
        for name, turns in found.items():
            cpu = median(mine.cpu_ms / its.cpu_ms for mine, its in zip(turns.turns, limit.turns, strict=True))
            cells = [
                f"{turns.rate:,.0f}",
                f"{turns.ratio(limit):.2f}",
                f"{turns.cpu_ms:.3f}",
                f"{cpu:.2f}",
                turns.errors,
            ]
            yield line([bundle.manifest.name, name, *cells])


def lengths(bundle: Bundle, setup: Setup, connections: int = 32, longest: int = 16) -> Iterator[str]:
    """Measure rows of 4 to 16 elements along the padded axes beside rows of 16; skip a model without padding."""
    if not bundle.manifest.batch.pad.axes:
        return
    sizes = [int(size) for size in np.random.default_rng(0).integers(4, longest + 1, 64)]
    mixed = [http_request(bundle, resized(bundle, size), binary=True) for size in sizes]
    fixed = [http_request(bundle, resized(bundle, longest), binary=True)]
    yield table(["model", "server", "lengths", "requests/s", "of Demi's fixed", "p50 ms", "p99 ms", "errors"])
    with contextlib.ExitStack() as stack:
        subjects = [stack.enter_context(demi(bundle, setup.threads))]
        if "triton" in setup.peers:
            subjects.append(stack.enter_context(peer("triton", setup.peers["triton"], bundle, setup.threads)))
        measures = {
            (subject.name, name): partial(measure_http, subject.server, requests, connections, setup.seconds)
            for subject in subjects
            for name, requests in ((f"{longest}", fixed), (f"4 to {longest}", mixed))
        }
        found = {key: Turns([]) for key in measures}
        for _ in range(setup.rounds + 1):
            for key, measure in measures.items():
                found[key].turns.append(measure())
        found = {key: Turns(turns.turns[1:]) for key, turns in found.items()}  # the first round is warm-up
        base = found["demi", f"{longest}"]
        for (server, name), turns in found.items():
            rate, ratio, p50, p99, _, errors = _figures(turns, base)
            yield line([bundle.manifest.name, server, name, rate, ratio, p50, p99, errors])


def overload(bundle: Bundle, setup: Setup) -> Iterator[str]:
    """Measure 256 connections against a queue of 64, beside 32 connections."""
    request = [http_request(bundle, first_row(bundle), binary=True)]
    yield table(["model", "connections", "good answers/s", "of those at 32", "503/s", "p99 of a 503 in ms", "errors"])
    with serving(bundle.path, setup.threads, "--max-queue", str(QUEUE)) as server:
        found = {count: Turns([]) for count in (32, MANY)}
        measure_http(server, request, 4, 0.5)
        for _ in range(setup.rounds):
            for count, turns in found.items():
                turns.turns.append(measure_http(server, request, count, setup.seconds))
        for count, turns in found.items():
            refused = [latency for turn in turns.turns for latency in turn.refused_s]
            rate = median(len(turn.refused_s) / turn.seconds for turn in turns.turns)
            p99 = f"{1000 * float(np.percentile(refused, 99)):.1f}" if refused else ""
            cells = [f"{turns.rate:,.0f}", f"{turns.ratio(found[32]):.2f}", f"{rate:,.0f}", p99, turns.errors]
            yield line([bundle.manifest.name, count, *cells])


def metrics(bundle: Bundle, setup: Setup, connections: int = 32) -> Iterator[str]:
    """Measure a server whose metrics are scraped every second beside one without metrics."""
    request = [http_request(bundle, first_row(bundle), binary=True)]
    yield table(["model", "metrics", "requests/s", "of that without", "errors"])
    with contextlib.ExitStack() as stack:
        servers = {
            flag: stack.enter_context(serving(bundle.path, setup.threads, flag))
            for flag in ("--no-metrics", "--metrics")
        }
        found = {flag: Turns([]) for flag in servers}
        for server in servers.values():
            measure_http(server, request, connections, 0.5)
        for _ in range(setup.rounds):
            for flag, server in servers.items():
                with read_every_second(server) if flag == "--metrics" else contextlib.nullcontext():
                    found[flag].turns.append(measure_http(server, request, connections, setup.seconds))
        for flag, turns in found.items():
            ratio = turns.ratio(found["--no-metrics"])
            yield line(
                [bundle.manifest.name, flag.removeprefix("--"), f"{turns.rate:,.0f}", f"{ratio:.3f}", turns.errors]
            )


@contextlib.contextmanager
def read_every_second(server: Server) -> Iterator[None]:
    """Scrape a server's metrics every second, on another thread, until the block ends."""
    done = threading.Event()

    def read() -> None:
        while True:
            with socket.create_connection((server.host, server.port), 5) as connection:
                connection.sendall(SCRAPE)
                while connection.recv(65536):
                    pass
            if done.wait(1.0):
                return

    thread = threading.Thread(target=read)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def footprint(bundle: Bundle, setup: Setup) -> Iterator[str]:
    """Measure the seconds from process start to the first answer, and memory after a turn of load."""
    request = http_request(bundle, first_row(bundle), binary=True)
    yield table(["model", "gRPC", "first answer s", "RSS MiB"])
    for name, flags in (("on", ("--grpc-port", "0")), ("off", ("--no-grpc",))):
        starts, sizes = [], []
        for _ in range(setup.rounds):
            started = time.perf_counter()
            with serving(bundle.path, setup.threads, *flags) as server:
                with socket.create_connection((server.host, server.port), 5) as connection:
                    connection.sendall(request)
                    assert connection.recv(12).endswith(b"200")
                starts.append(time.perf_counter() - started)
                measure_http(server, [request], 32, min(setup.seconds, 2.0))
                sizes.append(server.rss_mib())
        yield line([bundle.manifest.name, name, f"{median(starts):.2f}", f"{median(sizes):.0f}"])


SECTIONS = {
    "throughput": throughput,
    "grpc": grpc,
    "openvino": openvino,
    "lengths": lengths,
    "overload": overload,
    "metrics": metrics,
    "footprint": footprint,
}
