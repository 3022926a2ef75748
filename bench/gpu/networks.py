"""BERT, ResNet-50 and ViT in plain PyTorch, timed with random weights and without another package."""

# mypy: disable-error-code="no-any-return"

from __future__ import annotations

import torch
from torch import Tensor, nn


class Block(nn.Module):
    """A transformer layer: normalized after each half as in BERT, or before it as in ViT."""

    def __init__(self, width: int, heads: int, before: bool) -> None:
        super().__init__()
        self.heads, self.before = heads, before
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """Map float[batch, length, width] to the same shape."""
        if self.before:
            x = x + self.attend(self.first(x))
            return x + self.feed(self.second(x))
        x = self.first(x + self.attend(x))
        return self.second(x + self.feed(x))

    def attend(self, x: Tensor) -> Tensor:
        """Compute self-attention over all positions."""
        parts = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(parts[0], parts[1], parts[2])
        return self.out(mixed.transpose(1, 2).flatten(2))

    def feed(self, x: Tensor) -> Tensor:
        """Compute the two linear layers."""
        return self.down(nn.functional.gelu(self.up(x)))


class Bert(nn.Module):
    """A BERT encoder on token ids; by default BERT-base."""

    def __init__(self, layers: int = 12, width: int = 768, heads: int = 12, vocabulary: int = 30522) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(vocabulary, width), nn.Embedding(512, width)
        self.norm = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(Block(width, heads, before=False) for _ in range(layers))

    def forward(self, input_ids: Tensor) -> Tensor:
        """Map int64[batch, length] to float[batch, length, width]."""
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        x = self.norm(self.words(input_ids) + self.places(places))
        for block in self.blocks:
            x = block(x)
        return x


class Vit(nn.Module):
    """A vision transformer; by default ViT-B/16."""

    def __init__(self, layers: int = 12, width: int = 768, heads: int = 12, size: int = 224, patch: int = 16) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.start = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.places = nn.Parameter(torch.randn(1, (size // patch) ** 2 + 1, width) * 0.02)
        self.blocks = nn.ModuleList(Block(width, heads, before=True) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 1000)

    def forward(self, pixels: Tensor) -> Tensor:
        """Map float[batch, 3, size, size] to float[batch, 1000]."""
        x = self.patches(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.start.expand(x.shape[0], -1, -1), x], 1) + self.places
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


class Bottleneck(nn.Module):
    """A bottleneck: narrow, 3x3 convolution, widen, residual connection."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        after = 4 * width
        self.body = nn.Sequential(
            *convolution(before, width, 1, 1),
            nn.ReLU(),
            *convolution(width, width, 3, stride),
            nn.ReLU(),
            *convolution(width, after, 1, 1),
        )
        changes = stride != 1 or before != after
        self.skip = nn.Sequential(*convolution(before, after, 1, stride)) if changes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Compute one residual step."""
        return nn.functional.relu(self.body(x) + self.skip(x))


class ResNet(nn.Module):
    """A residual network of bottlenecks; by default ResNet-50."""

    def __init__(self, depths: tuple[int, ...] = (3, 4, 6, 3), width: int = 64) -> None:
        super().__init__()
        layers: list[nn.Module] = [*convolution(3, width, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
        before = width
        for stage, depth in enumerate(depths):
            for index in range(depth):
                layers.append(Bottleneck(before, width << stage, 2 if stage and not index else 1))
                before = 4 * (width << stage)
        self.body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, 1000))

    def forward(self, pixels: Tensor) -> Tensor:
        """Map float[batch, 3, size, size] to float[batch, 1000]."""
        logits: Tensor = self.body(pixels)
        return logits


def convolution(before: int, after: int, size: int, stride: int) -> tuple[nn.Module, nn.Module]:
    """Return a convolution without a bias, and its batch normalization."""
    return nn.Conv2d(before, after, size, stride, size // 2, bias=False), nn.BatchNorm2d(after)
