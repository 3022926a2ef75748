"""Exact rescaling: what it spares, and how long it takes.

    python -m bench.rescaling

Three tables: models that leave half's range as people meet them; those of `tests/hard` that overflow; and the time for
graphs of growing size. Errors are measured under the emulator, on inputs that the planner did not see.
"""

from __future__ import annotations

import argparse
import importlib
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from bench.planning import cast_bytes
from demi.accuracy.budget import Budget
from demi.accuracy.compare import compare
from demi.calibration.observe import observe
from demi.calibration.samples import Samples
from demi.calibration.sessions import session_for
from demi.exporter.api import convert
from demi.exporter.conversion import emulate
from demi.exporter.passes.prepare import prepare
from demi.exporter.rescaling.rescale import AS_WRITTEN, rescale_prepared
from tests.exporter.rescaling.planted import PLANTED, t5_like
from tests.hard.build import CORPUS, HardModel

SIZES = (4, 16, 64, 170)
"""Blocks of the T5-like model; 170 of them are 2,060 nodes."""


@dataclass(frozen=True)
class Result:
    """One conversion: nodes in FP32, bytes of casts, the error, and how long it took."""

    single: int
    nodes: int
    cast_bytes: int
    error: float
    seconds: float

    def cells(self) -> str:
        """The cells of a table's row."""
        return f"{self.single} of {self.nodes} | {self.cast_bytes:,} | {self.error:.1e}"


HEADER = """| model | FP32 nodes before | cast bytes before | error before | FP32 nodes after | cast bytes after | error after | constants | FP32 bits |
| --- | --- | --- | --- | --- | --- | --- | --- | --- |"""


def main() -> None:
    """Print the three tables."""
    parser = argparse.ArgumentParser(description="Exact rescaling: what it spares, and how long it takes.")
    parser.add_argument("--only", choices=("planted", "hard", "time"), help="print one table alone")
    only = parser.parse_args().only
    importlib.import_module("tests.hard.overflow")
    if only in (None, "planted"):
        _table({name: make() for name, make in PLANTED.items()})
    if only in (None, "hard"):
        _table({name: CORPUS[name]() for name in CORPUS if CORPUS[name]().kind == "overflow"})
    if only in (None, "time"):
        _times()


def _table(models: dict[str, HardModel]) -> None:
    print(HEADER, flush=True)
    for name, hard in models.items():
        before, after = _converted(hard, rescale=False), _converted(hard, rescale=True)
        constants, same = _alone(hard)
        print(f"| `{name}` | {before.cells()} | {after.cells()} | {constants} | {same} |", flush=True)
    print()


def _converted(hard: HardModel, *, rescale: bool) -> Result:
    started = time.perf_counter()
    found = convert(hard.model, hard.calibration, rescale=rescale)
    seconds = time.perf_counter() - started
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mixed.onnx"
        onnx.save(found.model, path)
        crossed = cast_bytes(path, hard.evaluation[0])
    computing = found.plan.computing
    mixed = ir.from_proto(onnx.shape_inference.infer_shapes(found.model, data_prop=True))
    with session_for(ir.from_proto(hard.model), settings=AS_WRITTEN) as session:
        references = [session.run(feeds) for feeds in hard.evaluation]
    measured = emulate(mixed, Samples(tuple(hard.evaluation), "unseen"))
    error = compare(references, measured, Budget()).worst.relative_l2
    return Result(len(computing) - found.plan.half_nodes, len(computing), crossed, error, seconds)


def _alone(hard: HardModel) -> tuple[str, str]:
    """How many constants the model alone has scaled, and whether unseen inputs give the same bits in FP32."""
    model = prepare(ir.from_proto(hard.model))
    profile = observe(model, Samples(tuple(hard.calibration), "calibration"))
    found = rescale_prepared(model, hard.calibration, profile)
    if found.certificate is None:
        return "0", found.why_not or "nothing to do"
    answers = []
    for each in (model, found.model):
        with session_for(each, settings=AS_WRITTEN) as session:
            answers.append([session.run(feeds) for feeds in hard.evaluation])
    same = all(
        np.array_equal(one[name].view(np.uint32), other[name].view(np.uint32))
        for one, other in zip(*answers, strict=True)
        for name in one
    )
    return str(len(found.certificate.constants) + len(found.certificate.numbers)), "equal" if same else "DIFFER"


def _times() -> None:
    print("| nodes | s to rescale | islands before | after |")
    print("| --- | --- | --- | --- |")
    for blocks in SIZES:
        hard = t5_like(blocks)
        model = prepare(ir.from_proto(hard.model))
        profile = observe(model, Samples(tuple(hard.calibration), "calibration"))
        started = time.perf_counter()
        found = rescale_prepared(model, hard.calibration[:1], profile)
        seconds = time.perf_counter() - started
        before, after = (found.certificate.before.nodes, found.certificate.after.nodes) if found.certificate else (0, 0)
        print(f"| {sum(1 for _ in model.graph):,} | {seconds:.2f} | {before} | {after} |", flush=True)


if __name__ == "__main__":
    main()
