"""PyTorch's fastest half: `torch.compile`, one graph for each batch size."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from bench.gpu import eager, peaks
from bench.gpu.models import HALVES
from bench.gpu.setup import Row, Setup, attempt
from bench.gpu.shapes import Shape, fewest
from bench.gpu.speed import beside
from bench.gpu.timing import measure


def rows(setup: Setup) -> Iterator[Row]:
    """Yield every shape, precision and batch size; the largest batch sizes first, where half matters most."""
    for shape in fewest(setup.quick, "full"):
        bound = peaks.bound_of(setup, shape)
        for precision in HALVES[:1] if setup.quick else HALVES:
            for batch in sorted(setup.batches, reverse=True):
                named: Row = {"model": shape.name, "precision": precision, "batch": batch}
                found = attempt(partial(timed, setup, shape, precision, batch))
                yield named | found | beside(bound(precision, batch), found)


def timed(setup: Setup, shape: Shape, precision: str, batch: int) -> Row:
    """Return the latency of the compiled module; it is compiled during the warm-up calls."""
    torch._dynamo.reset()
    plain = eager.module_in(setup, shape, precision)
    if setup.is_cuda:
        module = torch.compile(plain, dynamic=False, mode="reduce-overhead")
    else:  # without Inductor, which needs a C++ compiler there
        module = torch.compile(plain, dynamic=False, backend="aot_eager")
    return measure(eager.caller(setup, module, shape, batch, precision), setup.each_s).row(batch)
