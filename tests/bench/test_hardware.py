"""The hardware benchmark: ratios of CPU time, and PyTorch in half."""

import itertools

import numpy as np
import torch

from bench.hardware import cpu_ratio
from bench.torch_half import torch_runs


class Processor:
    """A fake CPU clock; runs advance it, the first of each by much more."""

    def __init__(self):
        self.now = 0.0

    def run(self, *seconds):
        """Return a function that takes these seconds in turn."""
        taken = itertools.chain([100.0], itertools.cycle(seconds))
        return lambda: setattr(self, "now", self.now + next(taken))


def test_the_ratio_of_cpu_time():
    """The least times count, without the first runs."""
    cpu = Processor()

    assert 0.25 == cpu_ratio(cpu.run(2.0, 5.0), cpu.run(9.0, 8.0), lambda: cpu.now)


def test_pytorch_in_half():
    """The eager run rounds to half, and returns float32."""
    torch.manual_seed(0)
    module, x = torch.nn.Linear(8, 4), np.linspace(-1, 1, 16, dtype=np.float32).reshape(2, 8)
    exact = module(torch.from_numpy(x)).detach().numpy()
    way, run = next(torch_runs(module, "bf16"))
    (got,) = run({"x": x})

    assert ("PyTorch eager", np.float32) == (way, got.dtype)
    assert 0 < np.linalg.norm(got - exact) < 2e-2 * np.linalg.norm(exact)
