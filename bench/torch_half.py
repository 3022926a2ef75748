"""A PyTorch module in half on the CPU, eager and compiled, for `bench.hardware`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from demi.tensors import Array, Feeds

HALF = {"fp16": torch.float16, "bf16": torch.bfloat16}


def torch_runs(
    module: torch.nn.Module, precision: str, threads: int = 1
) -> Iterator[tuple[str, Callable[[Feeds], list[Array]]]]:
    """Yield each way to run a module with its weights in half, as a function from inputs to float32 outputs.

    The module itself becomes half. Its first run compiles it, where it is compiled.
    """
    torch.set_num_threads(threads)
    half = module.eval().to(HALF[precision])
    yield "PyTorch eager", _function(half, precision)
    yield "torch.compile", _function(torch.compile(half), precision)


def _function(module: Any, precision: str) -> Callable[[Feeds], list[Array]]:
    def run(feeds: Feeds) -> list[Array]:
        tensors = [torch.from_numpy(np.ascontiguousarray(array)) for array in feeds.values()]
        given = [tensor.to(HALF[precision]) if tensor.is_floating_point() else tensor for tensor in tensors]
        with torch.inference_mode():
            found = module(*given)
        outputs = (found,) if isinstance(found, torch.Tensor) else found
        return [output.float().numpy() for output in outputs]

    return run
