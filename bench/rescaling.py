"""Exact rescaling: the nodes that it brings into half, and its time.

    python -m bench.rescaling

Four tables: models that leave half's range as people meet them; those of `tests/hard` that overflow; the time for graphs
of growing size; and the first ones again in half on this CPU, where OpenVINO is installed. Errors are measured on inputs
that the planner did not see, under the emulator but for the last table.
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
from demi.exporter.rescaling.api import rescale
from demi.exporter.rescaling.rescale import AS_WRITTEN, rescale_prepared
from demi.runtime.openvino.options import Hint, OvSettings
from demi.runtime.openvino.session import open_session as open_openvino
from demi.tensors import Feeds
from tests.exporter.rescaling.planted import PLANTED, t5_like
from tests.exporter.rescaling.same_nodes import errors_with_the_same_nodes
from tests.hard.build import CORPUS, HardModel

SIZES = (4, 16, 64, 120)
"""Blocks of the T5-like model; 120 of them are 2,050 nodes."""


@dataclass(frozen=True)
class Result:
    """One conversion: nodes in FP32, bytes of casts, and the error."""

    single: int
    nodes: int
    cast_bytes: int
    error: float
    forms: str
    """Stable forms, and the largest relative L2 by which they move an FP32 output."""

    def cells(self) -> str:
        """Return the cells of a table's row."""
        return f"{self.single} of {self.nodes} | {self.cast_bytes:,} | {self.error:.1e}"


HEADER = """| model | FP32 nodes before | cast bytes before | error before | FP32 nodes after | cast bytes after | error after | same nodes: error before, after | constants | FP32 bits | stable forms |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"""


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description="Exact rescaling: what it spares, and how long it takes.")
    parser.add_argument("--only", choices=("planted", "hard", "time", "hardware"), help="print one table alone")
    only = parser.parse_args().only
    importlib.import_module("tests.hard.overflow")
    if only in (None, "planted"):
        _table({name: make() for name, make in PLANTED.items()})
    if only in (None, "hard"):
        _table({name: CORPUS[name]() for name in CORPUS if CORPUS[name]().kind == "overflow"})
    if only in (None, "time"):
        print_times()
    if only in (None, "hardware"):
        _on_this_cpu()


def _table(models: dict[str, HardModel]) -> None:
    print(HEADER, flush=True)
    for name, hard in models.items():
        before, after = _converted(hard, rescale=False), _converted(hard, rescale=True)
        constants, same = _alone(hard)
        print(
            f"| `{name}` | {before.cells()} | {after.cells()} | {_with_the_same_nodes(hard)} | {constants} | {same} "
            f"| {after.forms} |",
            flush=True,
        )
    print()


def _converted(hard: HardModel, *, rescale: bool) -> Result:
    found = convert(hard.model, hard.calibration, rescale=rescale)
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
    forms = ", ".join(f"{form.form} ({form.difference:.0e})" for form in found.forms)
    return Result(len(computing) - found.plan.half_nodes, len(computing), crossed, error, forms)


def _with_the_same_nodes(hard: HardModel) -> str:
    """Return the errors without and with the rescaling where the plan is that of the model as it is."""
    found = errors_with_the_same_nodes(hard)
    return "" if found is None else f"{found[0]:.3e}, {found[1]:.3e}"


def _alone(hard: HardModel) -> tuple[str, str]:
    """Return the number of constants scaled without a plan, and whether unseen inputs give the same bits in FP32."""
    model = prepare(ir.from_proto(hard.model))
    profile = observe(model, Samples(tuple(hard.calibration), "calibration"))
    found = rescale_prepared(model, hard.calibration, profile, floors=True)
    if found.certificate is None:
        return "0", "left alone"
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


def print_times() -> None:
    """Print the CPU time of a rescaling for the T5-like model with more and more blocks."""
    print("| nodes | s of CPU time | islands before | after |")
    print("| --- | --- | --- | --- |")
    for blocks in SIZES:
        hard = t5_like(blocks)
        model = prepare(ir.from_proto(hard.model))
        profile = observe(model, Samples(tuple(hard.calibration), "calibration"))
        started = time.process_time()
        found = rescale_prepared(model, hard.calibration[:1], profile, floors=True)
        seconds = time.process_time() - started
        before, after = (found.certificate.before.nodes, found.certificate.after.nodes) if found.certificate else (0, 0)
        print(f"| {sum(1 for _ in model.graph):,} | {seconds:.2f} | {before} | {after} |", flush=True)


def _on_this_cpu() -> None:
    """Layers in half and the error in OpenVINO: the FP32 file with everything in half, and Demi's model as it stands."""
    print(
        "| model | rescaled | FP32 file, hint f16: error | layers in f16 | converted, hint dynamic: error | layers in f16 "
        "| within the budget |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name, make in PLANTED.items():
        hard = make()
        with session_for(ir.from_proto(hard.model), settings=AS_WRITTEN) as session:
            wanted = session.run(hard.evaluation[0])
        for scaled in (False, True):
            file = rescale(hard.model, hard.calibration).model if scaled else hard.model
            mixed = convert(hard.model, hard.calibration, rescale=scaled).model
            ways: tuple[tuple[onnx.ModelProto, Hint], ...] = ((file, "f16"), (mixed, "dynamic"))
            cells = [_in_half(model, hint, hard, wanted) for model, hint in ways]
            within = "yes" if cells[-1][1] else "NO"
            columns = " | ".join(text for text, _ in cells)
            print(f"| `{name}` | {'yes' if scaled else 'no'} | {columns} | {within} |", flush=True)


def _in_half(model: onnx.ModelProto, hint: Hint, hard: HardModel, wanted: Feeds) -> tuple[str, bool]:
    """Return the cells about one way to run a model in OpenVINO, and whether its error is within the default budget."""
    session = open_openvino(model.SerializeToString(), OvSettings(hint=hint))
    got = session.run(hard.evaluation[0])
    comparison = compare([wanted], [got], Budget())
    worst = comparison.worst
    layers = [each for each in session.executed if each.precision in ("f16", "f32") and each.layer != "Reorder"]
    half, every = (
        sum(each.count for each in layers if each.precision in kinds) for kinds in (("f16",), ("f16", "f32"))
    )
    error = f"{worst.relative_l2:.1e}" + (f" ({worst.non_finite} non-finite)" if worst.non_finite else "")
    return f"{error} | {half} of {every}", bool(comparison)


if __name__ == "__main__":
    main()
