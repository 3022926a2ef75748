"""Benchmark of precision planning beside other tools, in one run.

    python -m bench.planning --peers /path/to/python --minilm model.onnx
    python -m bench.planning --peers /path/to/python --wild magika,nudenet
    python -m bench.planning --only rescaling

Each tool converts the same model in a separate process, one after the other. All results are measured in the same way,
by Demi's emulator on inputs that no tool has seen. The peers' interpreter needs `nvidia-modelopt[onnx]` and
`onnxconverter-common`; a tool that cannot be run there is reported as missing. Prints a Markdown table. `--only rescaling`
times exact rescaling alone, for graphs of growing size (`bench.rescaling`).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from bench.peers import TOOLS
from bench.shapes import SHAPES, export_shape
from demi.accuracy.budget import Budget
from demi.accuracy.compare import compare
from demi.calibration.samples import Samples
from demi.calibration.sessions import session_for
from demi.exporter.conversion import emulate
from demi.runtime.onnxruntime.session import open_session
from demi.runtime.options import FAITHFUL
from tests.wild.models import BY_NAME

HERE = Path(__file__).parent
HALF = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


@dataclass(frozen=True)
class Row:
    """Result of one tool on one model."""

    model: str
    tool: str
    seconds: float = float("nan")
    peak_mib: float = float("nan")
    error: float = float("nan")
    non_finite: int = 0
    casts: int = 0
    cast_mib: float = float("nan")
    fp32_share: float = float("nan")
    problem: str = ""

    def markdown(self) -> str:
        """Return a table row."""
        if self.problem:
            return f"| {self.model} | {self.tool} | {self.problem} | | | | | |"
        error = f"{self.error:.2e}" + (f" ({self.non_finite} non-finite)" if self.non_finite else "")
        return f"| {self.model} | {self.tool} | {error} | {self.fp32_share:.1%} | {self.casts} | {self.cast_mib:.2f} | {self.seconds:.1f} | {self.peak_mib:.0f} |"


HEADER = """| model | tool | relative L2 (emulated, unseen inputs) | FP32 share of float compute nodes | casts | cast MiB | s | peak MiB |
| --- | --- | --- | --- | --- | --- | --- | --- |"""


def main() -> None:
    """Run every tool on every model and print the table."""
    args = _arguments()
    if args.only == "rescaling":
        from bench.rescaling import print_times  # which takes its bytes of casts from here

        print_times()
        return
    folder = Path(args.work or tempfile.mkdtemp(prefix="demi-bench-"))
    print(HEADER, flush=True)
    for name, path, sets in _models(args, folder):
        samples = folder / f"{name}-samples"
        samples.mkdir(parents=True, exist_ok=True)
        for index, feeds in enumerate(sets[:2]):
            np.savez(samples / f"{index}.npz", **feeds)
        for tool in TOOLS:
            print(measure(name, path, tool, samples, sets[2:], folder, args.peers).markdown(), flush=True)


def measure(name: str, path: Path, tool: str, samples: Path, unseen: list[Any], folder: Path, peers: str) -> Row:
    """Convert with one tool and measure the result."""
    out = folder / f"{name}-{tool}.onnx"
    python = sys.executable if tool == "demi" else peers
    command = [python, str(HERE / "peers.py"), tool, str(path), str(samples), str(out)]
    environment = {"PYTHONPATH": str(HERE.parent), "PATH": "/usr/bin:/bin", "HOME": str(folder)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=3600)
    if done.returncode:
        return Row(name, tool, problem=(done.stderr.strip().splitlines() or ["failed"])[-1][:120].replace("|", "/"))
    took = json.loads(done.stdout.strip().splitlines()[-1])
    try:
        return evaluate(name, tool, path, out, unseen, took)
    except Exception as error:
        return Row(
            name, tool, problem=f"converted model unusable: {str(error).splitlines()[0][:100]}".replace("|", "/")
        )


def evaluate(name: str, tool: str, path: Path, out: Path, unseen: list[Any], took: dict[str, float]) -> Row:
    """Return error under the emulator, casts and their bytes, and the share of float compute nodes in FP32."""
    original, mixed = ir.load(path), ir.load(out)
    with session_for(original, settings=FAITHFUL) as session:
        references = [session.run(feeds) for feeds in unseen]
    worst = compare(references, emulate(mixed, Samples(tuple(unseen), "unseen")), Budget()).worst
    casts = [node for node in mixed.graph.all_nodes() if _crosses(node)]
    compute = [node for node in mixed.graph.all_nodes() if node.op_type != "Cast" and _float_outputs(node)]
    single = sum(node.outputs[0].dtype is ir.DataType.FLOAT for node in compute)
    return Row(
        name,
        tool,
        seconds=took["seconds"],
        peak_mib=took["peak_mib"],
        error=worst.relative_l2,
        non_finite=worst.non_finite,
        casts=len(casts),
        cast_mib=cast_bytes(out, unseen[0]) / 2**20,
        fp32_share=single / max(len(compute), 1),
    )


def cast_bytes(path: Path, feeds: Any) -> int:
    """Return the bytes that casts between half and float32 read and write in one run: six an element."""
    model = onnx.shape_inference.infer_shapes(onnx.load(path))
    loaded = ir.from_proto(model)
    values = [node.outputs[0] for node in loaded.graph if _crosses(node)]
    shown = {value.name for value in loaded.graph.outputs}
    loaded.graph.outputs.extend(value for value in values if value.name not in shown)
    session = open_session(ir.to_proto(loaded).SerializeToString())
    types = {spec.name: spec.dtype.numpy for spec in session.inputs}
    got = session.run({k: v.astype(types[k]) for k, v in feeds.items()}, [value.name or "" for value in values])
    return sum(6 * int(array.size) for array in got.values())


def _crosses(node: ir.Node) -> bool:
    if node.op_type != "Cast" or node.inputs[0] is None:
        return False
    kinds = {node.inputs[0].dtype, ir.DataType(node.attributes["to"].as_int())}
    return ir.DataType.FLOAT in kinds and bool(kinds & set(HALF))


def _float_outputs(node: ir.Node) -> bool:
    return bool(node.outputs) and node.outputs[0].dtype in (ir.DataType.FLOAT, *HALF)


def _models(args: argparse.Namespace, folder: Path) -> Any:
    if args.minilm:
        rng = np.random.default_rng(1)
        sets = []
        for _ in range(4):
            lengths = rng.integers(8, 25, (8, 1))
            mask = (np.arange(24) < lengths).astype(np.int64)
            sets.append({"input_ids": rng.integers(1000, 30000, (8, 24)) * mask, "attention_mask": mask})
        yield "minilm", Path(args.minilm), sets
    if args.wild:
        yield from _wild(args.wild.split(","))
    for name in args.shapes.split(",") if args.shapes else () if args.wild else SHAPES:
        path, sets = export_shape(name, folder)
        yield name, path, sets


def _wild(names: list[str]) -> Iterator[tuple[str, Path, list[Any]]]:
    """Return the wild models: two sets of their samples, and every held-out one."""
    for name in names:
        model = BY_NAME.get(name)
        why = f"there is no {name} in tests/wild/models.py" if model is None else model.missing
        if model is None or why:
            sys.exit(why)
        run = open_session(model.path).run
        yield name, model.path, [*model.task.samples(run)[:2], *model.task.heldout(run)]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", default=sys.executable, metavar="PYTHON", help="interpreter that has the peers")
    parser.add_argument("--minilm", metavar="ONNX", help="MiniLM as FP32 ONNX (reference.onnx of its bundle will do)")
    parser.add_argument("--shapes", default="", metavar="A,B", help="only these shapes")
    parser.add_argument("--wild", default="", metavar="A,B", help="models of tests/wild that are ONNX files, by name")
    parser.add_argument("--only", choices=("rescaling",), help="time exact rescaling alone")
    parser.add_argument("--work", metavar="DIR", help="where models are kept between runs")
    return parser.parse_args()


if __name__ == "__main__":
    main()
