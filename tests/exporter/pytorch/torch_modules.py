"""Tiny PyTorch modules that tests export; importable, as a user's own code is."""

from __future__ import annotations

import types

import torch


class Mlp(torch.nn.Module):
    """Two layers and a ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Linear(4, 3), torch.nn.Linear(3, 2)

    def forward(self, x):
        return self.second(torch.relu(self.first(x)))


class Subtract(torch.nn.Module):
    """Two inputs whose order matters."""

    def forward(self, left, right):
        return left - 2 * right


class Named(torch.nn.Module):
    """A dict of outputs, not in the order of their names."""

    def forward(self, x):
        return {"scores": x + 1, "hidden": x * 2}


class Pair(torch.nn.Module):
    """A tuple of outputs."""

    def forward(self, x):
        return x + 1, x * 2


class Tower(torch.nn.Module):
    """Two inputs whose batches are independent."""

    def forward(self, queries, documents):
        return torch.relu(queries), torch.relu(documents)


class HalfNoisy(torch.nn.Module):
    """One output that differs with every call, and one that does not."""

    def forward(self, x):
        return x + torch.rand_like(x), x * 2


class Counting(torch.nn.Module):
    """Answers otherwise with every call, and draws nothing that a graph could hold."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return x + float(self.calls)


class Running(torch.nn.Module):
    """Adds what it has seen so far, which is a buffer."""

    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, x):
        self.seen.add_(1.0)
        return x + self.seen


class Spectrum(torch.nn.Module):
    """Returns complex numbers."""

    def forward(self, x):
        return torch.fft.rfft(x)


class Noisy(torch.nn.Module):
    """A module that answers something else each time."""

    def forward(self, x):
        return x + torch.rand_like(x)


class Spread(torch.nn.Module):
    """Standard deviations from the mean: amplifies the rounding errors of both."""

    def forward(self, x):
        return (x - x.mean(-1, keepdim=True)) / x.std(-1, keepdim=True)


class HalfWithin(torch.nn.Module):
    """Computes in half on its own account."""

    def forward(self, x):
        return (x.half() * 3).float() + x


class Returning(torch.nn.Module):
    """Gives its input back."""

    def forward(self, x):
        return x, x * 2


class Silent(torch.nn.Module):
    """A module that answers nothing."""

    def forward(self, x):
        torch.relu(x)


class Branching(torch.nn.Module):
    """A module that decides in Python by a value: it cannot be exported."""

    def forward(self, x):
        return x + 1 if x.sum().item() > 0 else x - 1


class Looping(torch.nn.Module):
    """A module that loops until a value is small: TorchScript can hold it, a graph cannot."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        steps = 0
        while bool(x.sum() > 1.0) and steps < 3:
            x = x / 2
            steps += 1
        return x


def build() -> torch.nn.Module:
    """A factory for `--model`."""
    torch.manual_seed(0)
    return Mlp()


def build_nothing() -> str:
    """A factory that builds no module."""
    return "no module"


def build_badly() -> torch.nn.Module:
    """A factory that fails."""
    raise RuntimeError("no weights here")


class Switchable(torch.nn.Module):
    """A stand-in for a transformers model: its fused attention cannot be traced, its eager one can."""

    def __init__(self):
        super().__init__()
        self.config = types.SimpleNamespace(_attn_implementation="sdpa")

    def set_attn_implementation(self, name):
        self.config._attn_implementation = name

    def forward(self, x):
        if self.config._attn_implementation != "eager" and torch.compiler.is_compiling():
            raise NotImplementedError("scaled_dot_product_attention cannot be traced")
        return x * 2


def leave():
    """A factory that ends the process."""
    raise SystemExit(0)


class Network(torch.nn.Module):
    """A convolution, a normalization with buffers, and a product."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm, self.out = torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Linear(4, 2)

    def forward(self, x):
        return self.out(torch.relu(self.norm(self.conv(x))).mean((2, 3)))


class WithBranch(torch.nn.Module):
    """Two products, one of which is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Linear(4, 2), torch.nn.Linear(4, 2)

    def forward(self, x):
        return torch.cond(x.sum() > 0, lambda x: self.first(x), lambda x: self.second(x) * 2, (x,))


class NamesItsHalf(torch.nn.Module):
    """Casts its input to the half type that its weights have, and its answer back."""

    def __init__(self, dtype) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.dtype, self.weight = dtype, torch.nn.Parameter(torch.randn(4, 2).to(dtype))

    def forward(self, x):
        return (x.to(self.dtype) @ self.weight).float()


class OneHot(torch.nn.Module):
    """Marks places, which PyTorch takes as int64 alone."""

    def forward(self, x, ids):
        return torch.nn.functional.one_hot(ids, 4) * x
