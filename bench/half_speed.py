"""Speed of half on this CPU: the session that Demi serves, beside FP32 and beside half without a plan, turn by turn.

    python -m bench.half_speed models/minilm-bf16@8x32,32x128 --shapes resnet50,bert_base
    python -m bench.half_speed --wild rapidocr_det,rapidocr_rec

Prints a Markdown table: the median time of Demi's session, and the median time of the others over it, so that 3 means
that Demi is three times as fast. All run with the same number of threads, on the same inputs, in short turns. `hint` is
OpenVINO's own best: the FP32 model compiled with a precision hint, without any of Demi's code around it. A geometric mean
ends the table.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.hardware import Subject, wild_subjects
from bench.sizes import with_length
from demi.bundles.bundle import Bundle, open_bundle
from demi.engines.key import key_path
from demi.errors import DemiError
from demi.proofs.attempt import open_road
from demi.proofs.prove import proof_of
from demi.proofs.record import Attempt
from demi.proofs.turns import with_batch
from demi.runtime.base import CPU, Session
from demi.runtime.onnxruntime.session import SessionSettings, open_session, runtime_version
from demi.runtime.openvino.capability import read_cpu
from demi.runtime.openvino.options import HINTS, OvSettings
from demi.runtime.openvino.session import open_session as open_openvino
from demi.runtime.openvino.session import openvino_version, require_openvino
from demi.tensors import Feeds, check_feeds

Run = Callable[[], object]
TURN_S = 0.4
SETS = 3
LEAST = 3
"""Runs of a turn, however long they take."""

WAYS = ("ONNX Runtime FP32", "OpenVINO FP32", "hint", "PyTorch eager", "torch.compile")


@dataclass(frozen=True)
class Size:
    """Rows of a run, and the length of its padded axes; 0 leaves the golden inputs' own."""

    rows: int = 0
    length: int = 0

    def __str__(self) -> str:
        return "x".join(str(part) for part in (self.rows, self.length) if part) or "as golden"


@dataclass(frozen=True)
class Row:
    """One model at one size: Demi's median time in ms, and those of the others."""

    name: str
    size: Size
    road: str
    error: float
    demi_ms: float
    others_ms: dict[str, float]

    @property
    def speedup(self) -> float:
        """Speed relative to FP32 in ONNX Runtime."""
        return self.others_ms[WAYS[0]] / self.demi_ms


def measure(subject: Subject, sizes: Sequence[Size], threads: int, seconds: float) -> Iterator[Row]:
    """Yield a row for each size. Where half is not right or does not pay on this CPU, Demi serves FP32 in ONNX Runtime."""
    bundle = subject.bundle
    proof = proof_of(bundle, threads, key_path())
    best = proof.best if proof.pays else None
    road = _in_words(best) if best else "FP32" if proof.best else "FP32, half is not right"
    for size in sizes:
        feeds = sized(bundle, size)
        runs = dict(_runs(subject, best, feeds, threads))
        found = medians_ms(list(runs.values()), seconds)
        demi_ms, *others = found
        others_ms = dict(zip(list(runs)[1:], others, strict=True))
        yield Row(bundle.manifest.name, size, road, best.error if best else 0.0, demi_ms, others_ms)


def _in_words(best: Attempt) -> str:
    return f"{best.road.file} `{best.road.hint}`{' with FP32 nodes as planned' if best.road.islands else ''}"


def _runs(subject: Subject, best: Attempt | None, feeds: Feeds, threads: int) -> Iterator[tuple[str, Run]]:
    bundle = subject.bundle
    assert bundle.reference_path is not None
    fp32 = open_session(bundle.reference_path, CPU, SessionSettings(threads=threads))
    yield "Demi", _of_session(open_road(bundle, best.road, threads)[0] if best else fp32, feeds)
    yield WAYS[0], _of_session(fp32, feeds)
    with contextlib.suppress(DemiError):  # a model that OpenVINO does not take
        yield WAYS[1], _of_session(open_openvino(bundle.reference_path, OvSettings("f32", threads)), feeds)
        yield WAYS[2], _bare(bundle, feeds, threads)
    if subject.module is not None:
        from bench.torch_half import torch_runs

        for way, run in torch_runs(subject.module, bundle.manifest.precision, threads):
            yield way, (lambda run=run: run(feeds))  # type: ignore[misc]


def _of_session(session: Session, feeds: Feeds) -> Run:
    own = check_feeds(session.inputs, feeds, cast_floats=True)
    return lambda: session.run(own)


def _bare(bundle: Bundle, feeds: Feeds, threads: int) -> Run:
    """OpenVINO as its users run it, in its own default of one stream for latency."""
    ov = require_openvino()
    options = {
        "INFERENCE_PRECISION_HINT": HINTS[bundle.manifest.precision],
        "INFERENCE_NUM_THREADS": str(threads),
        "PERFORMANCE_HINT": "LATENCY",
    }
    request = ov.Core().compile_model(str(bundle.reference_path), "CPU", options).create_infer_request()
    return lambda: request.infer(feeds)


def medians_ms(runs: Sequence[Run], seconds: float) -> list[float]:
    """Return the median time of each run. They take turns of about `TURN_S` until each had about `seconds`.

    A server runs one model again and again, so the first run of a turn, which finds another model's weights in the
    caches, does not count.
    """
    times: list[list[float]] = [[] for _ in runs]
    for _ in range(max(round(seconds / TURN_S), 2)):
        for run, taken in zip(runs, times, strict=True):
            run()
            stop, count = time.perf_counter() + TURN_S, 0
            while time.perf_counter() < stop or count < LEAST:
                start = time.perf_counter()
                run()
                taken.append(time.perf_counter() - start)
                count += 1
    return [statistics.median(taken) * 1e3 for taken in times]


def sized(bundle: Bundle, size: Size) -> Feeds:
    """Return golden inputs, repeated or cut to a size where the bundle's rows and lengths are free."""
    feeds = bundle.golden().inputs[0]
    if size.length:
        feeds = with_length(bundle, feeds, size.length)
    return with_batch(feeds, bundle.manifest.inputs, size.rows) if size.rows and bundle.manifest.batch.joins else feeds


def full_shapes(names: Sequence[str], folder: Path) -> Iterator[Subject]:
    """Yield ResNet-50 and BERT-base in full size with random weights, exported by `demi export --for cpu`."""
    import torch

    from tests.wild.exporting import export_command, write_sets

    for name in names:
        torch.manual_seed(0)
        module, sets = _full(name)
        path = folder / f"{name}.pt2"
        batch = torch.export.Dim("batch", min=2, max=64)
        args = tuple(torch.from_numpy(array) for array in sets[0].values())
        program = torch.export.export(module.eval(), args, dynamic_shapes=(tuple({0: batch} for _ in args),))
        torch.export.save(program, path)
        target = folder / "models" / name
        samples = write_sets(sets, folder / "samples" / name)
        subprocess.run(export_command(path, "cpu", samples, target, "--no-report"), check=True)
        yield Subject(open_bundle(target / "1"), module)


def _full(name: str) -> tuple[Any, list[Feeds]]:
    """Return a module and `SETS` sets of eight random rows."""
    import transformers

    from bench.shapes.base import First

    rng = np.random.default_rng(0)
    if name == "resnet50":
        model = transformers.ResNetForImageClassification(transformers.ResNetConfig())
        images = [rng.standard_normal((8, 3, 224, 224)).astype(np.float32) for _ in range(SETS)]
        return First(model, "pixel_values"), [{"args_0": each} for each in images]
    if name == "bert_base":
        model = transformers.BertModel(transformers.BertConfig(attn_implementation="eager"))
        return First(model, "input_ids"), [{"args_0": rng.integers(1, 30000, (8, 64))} for _ in range(SETS)]
    raise SystemExit(f"there is no shape {name}: resnet50, bert_base")


def print_table(rows: Iterator[Row]) -> None:
    """Print the rows as they come, and the geometric mean of the speedups."""
    print(f"{read_cpu()}, OpenVINO {openvino_version()}, ONNX Runtime {runtime_version()}\n")
    print(f"| bundle | size | road | error | Demi ms | {' | '.join(f'{way} / Demi' for way in WAYS)} |")
    print(f"| --- | --- | --- | ---: | ---: |{' ---: |' * len(WAYS)}", flush=True)
    speedups = []
    for row in rows:
        speedups.append(row.speedup)
        ratios = [f"{row.others_ms[way] / row.demi_ms:.2f}" if way in row.others_ms else "-" for way in WAYS]
        cells = [row.name, str(row.size), row.road, f"{row.error:.2e}", f"{row.demi_ms:.2f}", *ratios]
        print(f"| {' | '.join(cells)} |", flush=True)
    if len(speedups) > 1:
        print(f"\nGeometric mean of {WAYS[0]} / Demi: {statistics.geometric_mean(speedups):.2f}")


def _bundle(text: str) -> tuple[Path, tuple[Size, ...]]:
    """Parse PATH[@ROWSxLENGTH,...]."""
    path, _, sizes = text.partition("@")
    return Path(path), tuple(Size(*map(int, each.split("x"))) for each in sizes.split(",") if each) or (Size(),)


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Speed of half on this CPU beside FP32.")
    parser.add_argument("bundles", type=_bundle, nargs="*", metavar="BUNDLE[@ROWSxLENGTH,...]")
    parser.add_argument("--shapes", default="", metavar="NAME,NAME", help="resnet50, bert_base")
    parser.add_argument("--wild", default="", metavar="NAME,NAME", help="models of tests/wild")
    parser.add_argument(
        "--precision",
        choices=["cpu", "fp16", "bf16"],
        default="cpu",
        help="of the models of tests/wild (cpu: --for cpu)",
    )
    parser.add_argument("--threads", type=int, default=2, help="threads of each runtime (2)")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each runtime and size (4)")
    args = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        shapes, wild = ([name for name in names.split(",") if name] for names in (args.shapes, args.wild))

        def rows() -> Iterator[Row]:
            for path, sizes in args.bundles:
                yield from measure(Subject(open_bundle(path)), sizes, args.threads, args.seconds)
            for subject in full_shapes(shapes, folder):
                yield from measure(subject, (Size(8),), args.threads, args.seconds)
            for subject in wild_subjects(wild, args.precision, folder):
                sizes = (Size(1), Size(8)) if subject.bundle.manifest.batch.joins else (Size(),)
                yield from measure(subject, sizes, args.threads, args.seconds)

        print_table(rows())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
