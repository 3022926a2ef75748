"""A failure that a check on a CPU does not see: FP16 answers that are right here and zero on a GPU.

    python examples/overflow.py --out work/overflow

builds a block that many language models have (a matrix product, then RMS normalization written in primitives),
converts all of it to FP16, and measures it twice: with ONNX Runtime on this CPU, which computes in FP32 between the
nodes, and with Demi's emulator, which rounds every stored tensor to half as a GPU does. Writes `model.onnx` (FP32) and
`samples.npz` for `demi export`, which multiplies constants by powers of two so that everything fits.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import onnx
import onnx.numpy_helper
import onnx.parser
import onnx_ir as ir
from onnxconverter_common.float16 import convert_float_to_float16

from demi.accuracy.compare import relative_l2
from demi.calibration.emulation.widen import widen
from demi.calibration.sessions import session_for
from demi.runtime.onnxruntime.session import SessionSettings, open_session

SEED = 2026
WIDTH = 64
MODEL = """
<ir_version: 8, opset_import: ["" : 18]>
block (float[batch, 64] x) => (float[batch, 64] y)
<float two = {2.0}, float epsilon = {0.00001}, int64[1] last = {-1}>
{
  [project] h = MatMul(x, weight)
  [square] squared = Pow(h, two)
  [mean] mean = ReduceMean(squared, last)
  [add_epsilon] shifted = Add(mean, epsilon)
  [root] rms = Sqrt(shifted)
  [normalize] y = Div(h, rms)
}
"""
"""`h` is near 300: harmless in half; but its square is near 90,000, and half ends at 65,504."""


def build() -> onnx.ModelProto:
    """Return the FP32 block, with weights of ordinary size."""
    model = onnx.parser.parse_model(MODEL)
    weight = np.random.default_rng(SEED).standard_normal((WIDTH, WIDTH)).astype(np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "weight"))
    onnx.checker.check_model(model)
    return model


def samples() -> np.ndarray:
    """Return eight rows of inputs: a residual stream of standard deviation 40."""
    return (40 * np.random.default_rng(SEED + 1).standard_normal((8, WIDTH))).astype(np.float32)


def measure(x: np.ndarray) -> tuple[float, float, float]:
    """Return the relative L2 of the all-FP16 block against FP32, on this CPU and emulated, and the emulated largest |y|."""
    fp32 = open_session(build().SerializeToString()).run({"x": x})["y"]
    naive = convert_float_to_float16(build(), keep_io_types=True)
    on_cpu = open_session(naive.SerializeToString()).run({"x": x})["y"]
    with session_for(widen(ir.from_proto(naive)), settings=SessionSettings(faithful=True)) as session:
        emulated = session.run({"x": x})["y"]
    return relative_l2(fp32, on_cpu), relative_l2(fp32, emulated), float(np.abs(emulated).max())


def main() -> None:
    """Run the example."""
    parser = argparse.ArgumentParser(description="FP16 that is right on the CPU and zero on a GPU.")
    parser.add_argument("--out", type=Path, default=Path("work/overflow"), help="folder to write to (work/overflow)")
    out: Path = parser.parse_args().out
    x = samples()
    cpu, gpu, largest = measure(x)
    print(f"all nodes in FP16, ONNX Runtime on the CPU: {cpu:.2g} relative L2, looks fine")
    print(f"all nodes in FP16, every tensor stored in half: {gpu:.2g} relative L2, largest output {largest:.2g}")
    out.mkdir(parents=True, exist_ok=True)
    onnx.save(build(), out / "model.onnx")
    np.savez(out / "samples.npz", allow_pickle=False, x=x)


if __name__ == "__main__":
    main()
