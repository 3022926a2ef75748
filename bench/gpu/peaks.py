"""The device's measured limits: copied bytes and FLOPs of matrix products per second.

Together they are the roofline: no run of a network is quicker than its FLOPs at the rate of the product, nor than its
weights, inputs and outputs at the rate of the copy. Tensors between layers are not counted, since a perfect fusion would
keep them on the chip; so the roofline is a bound that no real runtime reaches.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial

import torch

from bench.gpu.setup import PROBLEM, Row, Setup, attempt
from bench.gpu.shapes import Shape
from bench.gpu.timing import measure

BYTES = {"fp32": 4, "tf32": 4, "fp16": 2, "bf16": 2}
DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class Peaks:
    """Bytes per second, read and written together, and FLOPs per second by precision."""

    bandwidth: float
    rates: dict[str, float]

    def bound_ms(self, precision: str, batch: int, flops: float, numbers: float, weights: int) -> float | None:
        """Return the shortest time in milliseconds for a batch, from the work of one row; None without a known rate."""
        if precision not in self.rates or not self.bandwidth:
            return None
        moved = BYTES[precision] * (weights + batch * numbers)
        return 1000 * max(batch * flops / self.rates[precision], moved / self.bandwidth)


def rows(setup: Setup) -> Iterator[Row]:
    """Yield the copy, then the matrix product in each precision, and store them for other sections."""
    copied = attempt(partial(copy, setup), what="copy")
    yield copied
    rates: dict[str, float] = {}
    for precision in BYTES:
        found = attempt(partial(multiply, setup, precision), what=f"matrix product, {precision}")
        if isinstance(rate := found.get("per second"), float):
            rates[precision] = rate * 1e12
        yield found
    copies = copied.get("per second")
    bandwidth = copies * 1e9 if isinstance(copies, float) else 0.0
    (setup.work / "peaks.json").write_text(json.dumps(asdict(Peaks(bandwidth, rates))))


def known(setup: Setup) -> Peaks:
    """Return the peaks, measured now unless an earlier section has measured them."""
    path = setup.work / "peaks.json"
    if not path.exists():
        list(rows(setup))
    return Peaks(**json.loads(path.read_text()))


def bound_of(setup: Setup, shape: Shape) -> Callable[[str, int], float | None]:
    """Return the roofline of a shape: precision and batch size to milliseconds."""
    peaks, (flops, numbers) = known(setup), shape.work()
    return lambda precision, batch: peaks.bound_ms(precision, batch, flops, numbers, shape.weights)


def copy(setup: Setup) -> Row:
    """Time a copy from memory to memory, far larger than the caches."""
    size = 2**22 if setup.quick else 2**30
    source = torch.ones(size, dtype=torch.uint8, device=setup.device)
    target = torch.empty_like(source)
    times = measure(lambda: finish(setup, target.copy_(source)), setup.each_s)
    return {"per second": 2 * size / times.p50_ms / 1e6, "unit": "GB"}


def multiply(setup: Setup, precision: str) -> Row:
    """Time a square matrix product of standard normal numbers."""
    size = 128 if setup.quick else 8192 if setup.is_cuda else 1024
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    if precision == "tf32" and not setup.is_cuda:
        return {PROBLEM: "a CPU has no TF32"}
    a, b = (torch.randn(size, size, device=setup.device).to(DTYPES[precision]) for _ in range(2))
    times = measure(lambda: finish(setup, a @ b), setup.each_s)
    return {"per second": 2 * size**3 / times.p50_ms / 1e9, "unit": "TFLOP"}


def finish(setup: Setup, result: object) -> object:
    """Return the result once the device has finished."""
    if setup.is_cuda:
        torch.cuda.synchronize()
    return result
