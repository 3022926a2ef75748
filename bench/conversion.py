"""Conversion alone, by operator lists, side by side with the peers: time and peak memory.

    python -m bench.conversion --peers /path/to/python

Two models: a BERT-base shape with random weights, from one model in memory to another, and a chain of MatMuls of
`--gib` GiB with external data, from file to file.
Every tool runs in a process of its own, turn by turn. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

WORKER = """
import json, sys, time
sys.path.insert(0, {bench!r})
from peers import peak_mib
source, target = sys.argv[1:3]
{prepare}
start = time.perf_counter()
{convert}
print(json.dumps({{"seconds": time.perf_counter() - start, "peak_mib": peak_mib()}}))
"""

IN_MEMORY = {
    "demi": (
        "import onnx\nfrom demi.exporter import convert\nmodel = onnx.load(source)\n"
        "plan = convert(model, calibrate=False, verify=False).plan",
        "convert(model, plan=plan, verify=False)",
    ),
    "onnxconverter-common": (
        "import onnx\nfrom onnxconverter_common.float16 import convert_float_to_float16\nmodel = onnx.load(source)",
        "convert_float_to_float16(model, keep_io_types=True)",
    ),
    "AutoCast": (
        "import onnx\nfrom modelopt.onnx.autocast import convert_to_mixed_precision",
        "convert_to_mixed_precision(onnx_path=source, keep_io_types=True)",
    ),
}

FILES = {
    "demi": (
        "from pathlib import Path\nfrom demi.exporter import convert_file",
        "convert_file(Path(source), Path(target))",
    ),
    "onnxconverter-common": (
        "import onnx\nfrom onnxconverter_common.float16 import convert_float_to_float16",
        "m = convert_float_to_float16(onnx.load(source), keep_io_types=True, disable_shape_infer={large})\\n"
        "onnx.save(m, target, save_as_external_data={large}, location='data', size_threshold=0)",
    ),
    "AutoCast": (
        "import onnx\nfrom modelopt.onnx.autocast import convert_to_mixed_precision",
        "m = convert_to_mixed_precision(onnx_path=source, keep_io_types=True)\\n"
        "onnx.save(m, target, save_as_external_data={large}, location='data')",
    ),
}


def main() -> None:
    """Convert both models with every tool and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", default=sys.executable, metavar="PYTHON", help="interpreter that has the peers")
    parser.add_argument("--gib", type=float, default=4.0, help="size of the large model (default: 4)")
    parser.add_argument("--runs", type=int, default=3, help="runs of each tool; the fastest counts (default: 3)")
    args = parser.parse_args()
    print("| model | tool | s (fastest) | peak MiB |\n| --- | --- | --- | --- |", flush=True)
    with tempfile.TemporaryDirectory(prefix="demi-bench-") as folder:
        models = (
            ("BERT-base", bert_base(Path(folder)), False),
            (f"{args.gib:g} GiB", large(Path(folder), args.gib), True),
        )
        for name, path, is_large in models:
            rows: dict[str, list[dict[str, float] | str]] = {tool: [] for tool in FILES}
            for _ in range(1 if is_large else args.runs):
                for tool in FILES:
                    rows[tool].append(run(tool, path, Path(folder), is_large, args.peers))
            for tool, results in rows.items():
                print(f"| {name} | {tool} | {_text(results)} |", flush=True)


def run(tool: str, path: Path, folder: Path, is_large: bool, peers: str) -> dict[str, float] | str:
    """Run one conversion; return the error's last line if it fails."""
    prepare, convert = (FILES if is_large else IN_MEMORY)[tool]
    code = WORKER.format(
        bench=str(Path(__file__).parent), prepare=prepare, convert=convert.format(large=is_large).replace("\\n", "\n")
    )
    python = sys.executable if tool == "demi" else peers
    environment = {"PYTHONPATH": str(Path(__file__).parent.parent), "PATH": "/usr/bin:/bin", "HOME": str(folder)}
    with tempfile.TemporaryDirectory(dir=folder) as out:
        command = [python, "-c", code, str(path), str(Path(out) / "half.onnx")]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=3600)
    if done.returncode:
        return (done.stderr.strip().splitlines() or [f"ended with {done.returncode}"])[-1][:100].replace("|", "/")
    result: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def _text(results: list[dict[str, float] | str]) -> str:
    good = [result for result in results if not isinstance(result, str)]
    if not good:
        return f"{results[0]} | "
    return f"{min(r['seconds'] for r in good):.2f} | {max(r['peak_mib'] for r in good):.0f}"


def bert_base(folder: Path) -> Path:
    """Export BERT-base with random weights."""
    import torch
    import transformers

    from bench.shapes import First

    model = First(transformers.BertModel(transformers.BertConfig()), "input_ids", "attention_mask").eval()
    ids = torch.randint(0, 1000, (2, 16))
    path = folder / "bert.onnx"
    program = torch.onnx.export(model, (ids, torch.ones_like(ids)), dynamo=True, verbose=False)
    assert program is not None
    program.save(path, external_data=False)
    return path


def large(folder: Path, gib: float, width: int = 8192) -> Path:
    """Write a chain of square MatMuls and Relus whose weights of 256 MiB each are in one external file."""
    layers = max(1, round(gib * 2**30 / (width * width * 4)))
    nodes, weights = [], []
    with (folder / "large.data").open("wb") as data:
        for layer in range(layers):
            offset = data.tell()
            np.random.default_rng(layer).standard_normal((width, width), dtype=np.float32).tofile(data)
            weight = TensorProto(name=f"w{layer}", data_type=TensorProto.FLOAT, dims=[width, width])
            weight.data_location = TensorProto.EXTERNAL
            for key, value in (("location", "large.data"), ("offset", offset), ("length", width * width * 4)):
                weight.external_data.add(key=key, value=str(value))
            weights.append(weight)
            nodes.append(helper.make_node("MatMul", [f"h{layer}", f"w{layer}"], [f"p{layer}"], name=f"matmul{layer}"))
            nodes.append(helper.make_node("Relu", [f"p{layer}"], [f"h{layer + 1}"], name=f"relu{layer}"))
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", width]) for n in ("h0", f"h{layers}"))
    graph = helper.make_graph(nodes, "large", [x], [y], weights)
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), folder / "large.onnx"
    )
    return folder / "large.onnx"


if __name__ == "__main__":
    main()
