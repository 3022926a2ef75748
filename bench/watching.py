"""Cost of the guard, the shadow and the console: servers with them beside one without, in alternating turns of one run.

    python -m bench.watching --bundle models/minilm --seconds 3 --rounds 5

All servers run at the same time and are loaded in turn, so that a noisy machine disturbs them alike. Prints a Markdown
table with the median of the rounds and its ratio to the server without guard and shadow, then the time that inspecting
one batch takes, beside the time of its run, and the time that the console takes for a reading of all models. Every turn is bounded in time and stays on this machine's loopback.
"""

from __future__ import annotations

import argparse
import contextlib
import threading
import time
import timeit
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from bench.serving.load import measure_http
from bench.serving.requests import first_row, http_request
from bench.serving.servers import Server, serving
from demi.bundles.bundle import Bundle, open_bundle
from demi.runtime.onnxruntime.session import open_session
from demi.server.http.console.board import Board
from demi.server.http.console.events import encode_event
from demi.server.models.loading import load_bundle
from demi.server.models.model import Model
from demi.server.models.repository import Repository
from demi.server.scheduling.inspection import Bounds, is_finite
from demi.server.scheduling.stacking import concatenate
from demi.server.settings import ServeSettings
from demi.server.telemetry.recorder import MINUTE_S, TICK_S, Recorder

SERVERS = {
    "guard and shadow off": ("--no-guard", "--no-console"),
    "guard on": ("--guard", "--no-console"),
    "guard on, shadow at 1%": ("--guard", "--shadow", "0.01", "--no-console"),
    "guard and shadow off, console closed": ("--no-guard",),
    "guard and shadow off, console open": ("--no-guard",),
}
"""Flags of each server."""

WATCHED = "guard and shadow off, console open"
"""The server whose console is open while it is measured, on the page of its model."""


def bench_servers(path: Path, connections: int, threads: int, seconds: float, rounds: int) -> None:
    """Measure the servers and print their table."""
    bundle = open_bundle(path)
    request = http_request(bundle, first_row(bundle), binary=True)
    rates: dict[str, list[float]] = {name: [] for name in SERVERS}
    errors = 0
    with contextlib.ExitStack() as stack:
        servers = {name: stack.enter_context(serving(path, threads, *flags)) for name, flags in SERVERS.items()}
        stack.enter_context(watching(servers[WATCHED], bundle))
        for server in servers.values():
            measure_http(server, [request], connections, 1.0)
        for _ in range(rounds):
            for name, server in servers.items():
                turn = measure_http(server, [request], connections, seconds)
                rates[name].append(turn.rate)
                errors += turn.errors
    plain = rates[next(iter(SERVERS))]
    print("| server | requests/s | ratio to the server without, median of the rounds |")
    print("| --- | ---: | ---: |")
    for name, found in rates.items():
        ratios = [rate / without for rate, without in zip(found, plain, strict=True)]
        print(f"| {name} | {median(found):,.0f} | {median(ratios):.3f} |")
    print(f"\nerrors: {errors}\n")


def bench_inspection(bundle: Bundle, rows: int) -> None:
    """Print the time that inspecting a batch takes, and that of its run."""
    session = open_session(bundle.model_path)
    feeds = concatenate([first_row(bundle)] * rows)
    outputs = session.run(feeds)
    bounds = {name: Bounds.around(*ends) for name, ends in bundle.manifest.input_ranges.items()}

    def inspect() -> None:
        for name, each in bounds.items():
            each.contain(feeds[name])
        for values in outputs.values():
            is_finite(values)

    inspect_s = min(timeit.repeat(inspect, number=100, repeat=5)) / 100
    run_s = min(timeit.repeat(lambda: session.run(feeds), number=3, repeat=5)) / 3
    print(
        f"inspecting a batch of {rows}: {inspect_s * 1e6:.1f} us, its run: {run_s * 1e3:.2f} ms ({inspect_s / run_s:.4%})"
    )


@contextlib.contextmanager
def watching(server: Server, bundle: Bundle) -> Iterator[None]:
    """Read the console's events on a thread, as an open page does, while the block runs."""
    url = f"http://{server.host}:{server.port}/console/events?model={bundle.manifest.name}&version={bundle.manifest.version}"
    stopping = threading.Event()

    def read() -> None:
        with urllib.request.urlopen(url) as stream:
            while not stopping.is_set() and stream.readline():
                pass

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    yield
    stopping.set()
    thread.join(5)


def bench_console(path: Path, models: int) -> None:
    """Print the CPU time that the console takes for so many busy models, watched and not."""
    settings = ServeSettings(runtime="onnxruntime", precision="half", threads=1)
    loaded = load_bundle(path, settings)
    repository = Repository([Model(f"model-{number}", "1", settings) for number in range(models)])
    for model in repository:
        model.start(loaded)
    recorder = Recorder(repository)
    board = Board(repository, recorder)

    def tick() -> None:
        for model in repository:
            model.statistics.success.add(1_000_000)
            model.statistics.request_seconds.add(0.001)
        recorder.read("minutes")
        revision = board.since(0).revision
        board.update()
        encode_event("models", board.since(revision))

    tick()
    watched_s = (
        min(timeit.repeat(tick, timer=time.process_time, number=20, repeat=5)) / 20
    )  # readings in turn repeat well within 20
    alone_s = min(timeit.repeat(lambda: recorder.read("hours"), timer=time.process_time, number=20, repeat=5)) / 20
    print(
        f"console with {models} busy models: {watched_s * 1e3:.2f} ms every {TICK_S:g} s ({watched_s / TICK_S:.3%} of a core) "
        f"while somebody watches, {alone_s * 1e3:.2f} ms a minute ({alone_s / MINUTE_S:.4%}) while nobody does"
    )
    repository.close(5.0)


def main() -> None:
    """Run the benchmark and print its tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bundle", type=Path, required=True, help="bundle with its FP32 reference")
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1, help="threads per run")
    parser.add_argument("--seconds", type=float, default=3.0, help="seconds per turn, at most 30")
    parser.add_argument("--rounds", type=int, default=5, help="turns per server, at most 20")
    args = parser.parse_args()
    bench_servers(args.bundle, args.connections, args.threads, min(args.seconds, 30.0), min(args.rounds, 20))
    for rows in (1, 8, 32):
        bench_inspection(open_bundle(args.bundle), rows)
    for models in (1, 10, 100, 1000):
        bench_console(args.bundle, models)


if __name__ == "__main__":
    main()
