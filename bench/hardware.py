"""Half on this CPU: the error that was predicted, the emulated one and the CPU's own, and CPU time beside FP32.

    python -m bench.hardware models/minilm models/minilm-bf16
    python -m bench.hardware --shapes bert,resnet --bf16
    python -m bench.hardware --wild rapidocr_cls,nudenet --bf16

Prints a Markdown table with a row for each bundle and each way to run it in OpenVINO, and for shapes, which are PyTorch
modules, in PyTorch with half weights, eager and compiled. The CPU time of a run is that of all
threads of this process, with one thread for each runtime, the least of several alternating runs: unlike wall-clock time it
changes little on a busy machine. `real / emulated` is to be within 25% for the half model itself (`dynamic`).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from demi.accuracy.compare import relative_l2
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
    way: str
    """OpenVINO's precision hint, or the name of another way."""
    predicted: float | None = None
    emulated: float | None = None
    real: float | None = None
    products: str = ""
    """Matrix products and convolutions in half, of all."""
    cpu_time: float | None = None
    """CPU time of half over that of FP32 in ONNX Runtime."""
    problem: str = ""


@dataclass(frozen=True)
class Subject:
    """A bundle, and the PyTorch module that it was exported from, if there is one."""

    bundle: Bundle
    module: Any = None


def measure(subject: Subject, batch: int) -> Iterator[Row]:
    """Yield a row for each way to run a bundle in half, at this many rows if its batch is free."""
    bundle, manifest = subject.bundle, subject.bundle.manifest
    content = msgspec.json.decode((bundle.path / manifests.ACCURACY).read_bytes())
    predicted = max((content.get("predicted_relative_l2") or {}).values(), default=None)
    emulated = check_bundle(bundle.path).comparison.worst.relative_l2
    for road in roads_of(bundle):
        way = f"`{road.hint}`{' with FP32 nodes as planned' if road.islands else ''}"
        row = Row(manifest.name, manifest.precision, way, predicted, emulated)
        try:
            yield _with_hardware(row, bundle, road, batch)
        except DemiError as error:
            yield replace(row, problem=error.message[:80])
    if subject.module is not None:
        yield from _in_torch(Row(manifest.name, manifest.precision, "", predicted, emulated), subject, batch)


def _in_torch(row: Row, subject: Subject, batch: int) -> Iterator[Row]:
    """Yield a row for PyTorch, eager and compiled; `problem` holds the first line of an error."""
    from bench.torch_half import torch_runs

    golden, fp32 = subject.bundle.golden(), _fp32_session(subject.bundle)
    feeds = _sized(subject.bundle, batch)
    for way, run in torch_runs(subject.module, row.precision):
        named = replace(row, way=way)
        try:
            pairs = [
                (expected, got)
                for given, wanted in zip(golden.inputs, golden.outputs, strict=True)
                for expected, got in zip(wanted.values(), run(given), strict=True)
            ]
            real = max(relative_l2(expected, got) for expected, got in pairs)
            ratio = cpu_ratio(lambda run=run: run(feeds), _runner(fp32, feeds))
            yield replace(named, real=real, cpu_time=ratio)
        except Exception as error:  # a compiler that is missing, or an operator without a half kernel
            yield replace(named, problem=str(error).strip().split("\n")[0][:80])


def _fp32_session(bundle: Bundle) -> Session:
    assert bundle.reference_path is not None
    return open_session(bundle.reference_path, CPU, SessionSettings(threads=1))


def _sized(bundle: Bundle, batch: int) -> Feeds:
    feeds = bundle.golden().inputs[0]
    return with_batch(feeds, bundle.manifest.inputs, batch) if bundle.manifest.batch.joins else feeds


def _runner(session: Session, feeds: Feeds) -> Callable[[], object]:
    own = check_feeds(session.inputs, feeds, cast_floats=True)
    return lambda: session.run(own)


def _with_hardware(row: Row, bundle: Bundle, road: Road, batch: int) -> Row:
    half = open_road(bundle, road, threads=1)[0]
    real = answers(bundle, half).worst.relative_l2
    assert isinstance(half, OvSession)
    products = "{} of {}".format(*products_in(half.executed, {"fp16": "f16", "bf16": "bf16"}[row.precision]))
    feeds = _sized(bundle, batch)
    ratio = cpu_ratio(_runner(half, feeds), _runner(_fp32_session(bundle), feeds))
    return replace(row, real=real, products=products, cpu_time=ratio)


def cpu_ratio(
    half: Callable[[], object], fp32: Callable[[], object], clock: Callable[[], float] = time.process_time
) -> float:
    """Return the least CPU time of a run in half over the least of one in FP32, run alternately."""
    half(), fp32()  # what is compiled or allocated once does not count
    times: list[list[float]] = [[], []]
    for _ in range(TURNS):
        for run, taken in zip((half, fp32), times, strict=True):
            start = clock()
            run()
            taken.append(clock() - start)
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
            row.way,
            *map(_figure, (row.predicted, row.emulated, row.real)),
        ]
        cells += [_figure(ratio, ".2f"), row.products, row.problem or _figure(row.cpu_time, ".2f")]
        print(f"| {' | '.join(cells)} |", flush=True)


def _figure(value: float | None, form: str = ".2e") -> str:
    return "-" if value is None else format(value, form)


def shape_subjects(names: Sequence[str], precision: str, folder: Path) -> Iterator[Subject]:
    """Yield bundles of the shapes of `bench.shapes`, exported on the way, with their PyTorch modules."""
    import torch

    from bench.shapes import SHAPES, export_shape

    for name in names:
        path, sets = export_shape(name, folder)
        torch.manual_seed(0)  # the seed of the exported one
        module = SHAPES[name]().module if name in SHAPES else None
        made = export(path, folder / "models" / name, precision=precision, samples=sets[:SEEN], report=False)
        yield Subject(open_bundle(made.path), module)


def wild_subjects(names: Sequence[str], precision: str, folder: Path) -> Iterator[Subject]:
    """Yield bundles of models of tests/wild, exported on the way as `make wild` does; stop the program if one fails."""
    from tests.wild.exporting import export as export_wild
    from tests.wild.models import BY_NAME

    for name in names:
        model = BY_NAME.get(name)
        why = f"there is no {name} in tests/wild/models.py" if model is None else model.missing
        if model is None or why:
            sys.exit(why)
        found = export_wild(model, precision, folder)
        if found.failure:
            sys.exit(f"{name}: {found.failure}")
        yield Subject(open_bundle(found.bundle))


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Errors and CPU time of half on this CPU.")
    parser.add_argument("bundles", type=Path, nargs="*", metavar="BUNDLE")
    parser.add_argument("--shapes", default="", metavar="NAME,NAME", help="export these shapes of bench.shapes as well")
    parser.add_argument("--wild", default="", metavar="NAME,NAME", help="export these models of tests/wild as well")
    parser.add_argument("--bf16", action="store_true", help="the shapes and models in BF16 instead of FP16")
    parser.add_argument("--batch", type=int, default=8, help="rows of a timed run (8)")
    args = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        shapes, wild = ([name for name in names.split(",") if name] for names in (args.shapes, args.wild))
        precision = "bf16" if args.bf16 else "fp16"

        def subjects() -> Iterator[Subject]:
            yield from map(Subject, map(open_bundle, args.bundles))
            yield from shape_subjects(shapes, precision, folder)
            yield from wild_subjects(wild, precision, folder)

        print_table(row for subject in subjects() for row in measure(subject, args.batch))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
