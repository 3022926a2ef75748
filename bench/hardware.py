"""Half on this CPU: the error that was predicted, the emulated one and the CPU's own, and CPU time beside FP32.

    python -m bench.hardware models/minilm models/minilm-bf16
    python -m bench.hardware --shapes bert_base,resnet50 --bf16

Prints a Markdown table with a row for each bundle and each way to run it in OpenVINO. The CPU time of a run is that of all
threads of this process, with one thread for each runtime, the least of several alternating runs: unlike wall-clock time it
changes little on a busy machine. `real / emulated` is to be within 25% for the half model itself (`dynamic`).
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from demi.api import export
from demi.bundles import manifest as manifests
from demi.bundles.bundle import Bundle, open_bundle
from demi.calibration.gate.check import check_bundle
from demi.errors import DemiError
from demi.proofs.attempt import answers, open_road
from demi.proofs.prove import roads_of
from demi.proofs.record import Road
from demi.proofs.turns import with_batch
from demi.runtime.base import CPU, Session
from demi.runtime.onnxruntime.session import SessionSettings, open_session, runtime_version
from demi.runtime.openvino.capability import read_cpu
from demi.runtime.openvino.executed import products_in
from demi.runtime.openvino.session import OvSession, openvino_version
from demi.tensors import Feeds, check_feeds

TURNS = 9
SEEN = 2
"""Sets of a shape's inputs that planning sees."""


@dataclass(frozen=True)
class Row:
    """One way to run one bundle; `problem` where it could not be run."""

    name: str
    precision: str
    road: Road
    predicted: float | None = None
    emulated: float | None = None
    real: float | None = None
    products: str = ""
    """Matrix products and convolutions in half, of all."""
    cpu_time: float | None = None
    """CPU time of half over that of FP32 in ONNX Runtime."""
    problem: str = ""


def measure(bundle: Bundle, batch: int) -> Iterator[Row]:
    """Yield a row for each way to run a bundle in half, at this many rows if its batch is free."""
    manifest = bundle.manifest
    content = msgspec.json.decode((bundle.path / manifests.ACCURACY).read_bytes())
    predicted = max((content.get("predicted_relative_l2") or {}).values(), default=None)
    emulated = check_bundle(bundle.path).comparison.worst.relative_l2
    for road in roads_of(bundle):
        row = Row(manifest.name, manifest.precision, road, predicted, emulated)
        try:
            yield _with_hardware(row, bundle, batch)
        except DemiError as error:
            yield replace(row, problem=error.message[:80])


def _with_hardware(row: Row, bundle: Bundle, batch: int) -> Row:
    half = open_road(bundle, row.road, threads=1)[0]
    real = answers(bundle, half).worst.relative_l2
    assert isinstance(half, OvSession)
    products = "{} of {}".format(*products_in(half.executed, {"fp16": "f16", "bf16": "bf16"}[row.precision]))
    assert bundle.reference_path is not None
    fp32 = open_session(bundle.reference_path, CPU, SessionSettings(threads=1))
    feeds = bundle.golden().inputs[0]
    if bundle.manifest.batch.joins:
        feeds = with_batch(feeds, bundle.manifest.inputs, batch)
    ratio = _cpu_time(half, fp32, feeds)
    return replace(row, real=real, products=products, cpu_time=ratio)


def _cpu_time(half: Session, fp32: Session, feeds: Feeds) -> float:
    """Return the least CPU time of a run in half over the least of one in FP32, run alternately."""
    sessions = (half, fp32)
    inputs = [check_feeds(session.inputs, feeds, cast_floats=True) for session in sessions]
    times: list[list[float]] = [[], []]
    for _ in range(TURNS):
        for session, mine, taken in zip(sessions, inputs, times, strict=True):
            start = time.process_time()
            session.run(mine)
            taken.append(time.process_time() - start)
    return min(times[0]) / min(times[1])


def print_table(rows: Iterator[Row]) -> None:
    """Print the rows as they come."""
    print(f"{read_cpu()}, OpenVINO {openvino_version()}, ONNX Runtime {runtime_version()}\n")
    print("| bundle | road | predicted | emulated | real | real / emulated | products in half | CPU time / FP32's |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |", flush=True)
    for row in rows:
        ratio = row.real / row.emulated if row.real is not None and row.emulated else None
        cells = [
            f"{row.name} {row.precision}",
            f"`{row.road.hint}`",
            *map(_figure, (row.predicted, row.emulated, row.real)),
        ]
        cells += [_figure(ratio, ".2f"), row.products, row.problem or _figure(row.cpu_time, ".2f")]
        print(f"| {' | '.join(cells)} |", flush=True)


def _figure(value: float | None, form: str = ".2e") -> str:
    return "-" if value is None else format(value, form)


def shape_bundles(names: Sequence[str], precision: str, folder: Path) -> Iterator[Bundle]:
    """Yield bundles of the shapes of `bench.shapes`, exported on the way."""
    from bench.shapes import export_shape

    for name in names:
        path, sets = export_shape(name, folder)
        yield open_bundle(
            export(path, folder / "models" / name, precision=precision, samples=sets[:SEEN], report=False).path
        )


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Errors and CPU time of half on this CPU.")
    parser.add_argument("bundles", type=Path, nargs="*", metavar="BUNDLE")
    parser.add_argument("--shapes", default="", metavar="NAME,NAME", help="export these shapes of bench.shapes as well")
    parser.add_argument("--bf16", action="store_true", help="the shapes in BF16 instead of FP16")
    parser.add_argument("--batch", type=int, default=8, help="rows of a timed run (8)")
    args = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        names = [name for name in args.shapes.split(",") if name]

        def bundles() -> Iterator[Bundle]:
            yield from map(open_bundle, args.bundles)
            yield from shape_bundles(names, "bf16" if args.bf16 else "fp16", folder)

        print_table(row for bundle in bundles() for row in measure(bundle, args.batch))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
