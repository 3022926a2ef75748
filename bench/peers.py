"""One conversion by one tool, in a process of its own: `python bench/peers.py TOOL MODEL SAMPLES OUT`.

Prints one line of JSON: seconds (imports and reading left out) and the process's peak memory in MiB. Runs in any
interpreter that has the tool; only the standard library, numpy and onnx are needed besides.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx

LIMIT = 1e-2
"""Relative L2 that the searching tools validate with."""


def read_samples(path: Path) -> list[dict[str, Any]]:
    """Read the sets of inputs in a folder of `.npz` files."""
    sets = []
    for file in sorted(path.glob("*.npz")):
        with np.load(file) as archive:
            sets.append({name: archive[name] for name in archive.files})
    return sets


def by_demi(model: onnx.ModelProto, sets: list[dict[str, Any]]) -> Any:
    """Convert by Demi, measured and solved."""
    from demi.exporter import convert

    return lambda: convert(model, sets).model


def by_onnxconverter_common(model: onnx.ModelProto, sets: list[dict[str, Any]]) -> Any:
    """Convert by fixed operator lists."""
    from onnxconverter_common.float16 import convert_float_to_float16

    return lambda: convert_float_to_float16(model, keep_io_types=True)


def by_auto_mixed_precision(model: onnx.ModelProto, sets: list[dict[str, Any]]) -> Any:
    """Convert by bisection over nodes, validated on ONNX Runtime's CPU provider."""
    from onnxconverter_common.auto_mixed_precision import auto_convert_mixed_precision

    def validate(reference: list[Any], measured: list[Any]) -> bool:
        pairs = zip(reference, measured, strict=True)
        return all(
            np.linalg.norm(a.astype(np.float64) - b) <= LIMIT * np.linalg.norm(a.astype(np.float64)) for a, b in pairs
        )

    return lambda: auto_convert_mixed_precision(model, sets[0], validate, keep_io_types=True)


def by_autocast(model: onnx.ModelProto, sets: list[dict[str, Any]]) -> Any:
    """Convert by ModelOpt AutoCast at its default settings, with the first set of inputs as calibration data."""
    import tempfile

    from modelopt.onnx.autocast import convert_to_mixed_precision

    folder = Path(tempfile.mkdtemp())
    onnx.save(model, folder / "model.onnx")
    np.savez(folder / "calibration.npz", **sets[0])
    return lambda: convert_to_mixed_precision(
        onnx_path=str(folder / "model.onnx"), calibration_data=str(folder / "calibration.npz"), keep_io_types=True
    )


TOOLS = {
    "demi": by_demi,
    "onnxconverter-common": by_onnxconverter_common,
    "auto_mixed_precision": by_auto_mixed_precision,
    "AutoCast": by_autocast,
}


def main() -> None:
    """Convert once, and print time and memory."""
    tool, model_path, samples, out = sys.argv[1], *map(Path, sys.argv[2:5])
    model = onnx.load(model_path)
    with contextlib.redirect_stdout(io.StringIO()):
        convert = TOOLS[tool](model, read_samples(samples))
        start = time.perf_counter()
        converted = convert()
        seconds = time.perf_counter() - start
    onnx.save(converted, out)
    print(json.dumps({"seconds": seconds, "peak_mib": peak_mib()}))


def peak_mib() -> float:
    """Return this process's own peak memory (getrusage would count its parent's from before the exec)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    return float("nan")


if __name__ == "__main__":
    main()
