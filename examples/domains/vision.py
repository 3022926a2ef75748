"""Vision: which digit is on a scanned picture; real pictures.

    python -m examples.domains.vision

The pictures are scikit-learn's: 1,797 handwritten digits of 43 people, 8 x 8 pixels each (UCI's optical recognition of
handwritten digits). They are enlarged to 16 x 16, in training as in the served model, which takes picture files of any
size. The network is convolutional, with residual connections.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from examples.batches import draws
from examples.domains.asking import ask_file
from examples.domains.domain import Domain, Measure
from examples.domains.pictures import pixels, save_picture, write_processor
from examples.domains.steps import main

SIDE, BATCH, HELD_OUT = 16, 64, 450


def digits() -> tuple[np.ndarray, np.ndarray]:
    """Return the pictures as scanned, uint8[1797, 8, 8] and white on black, and the digits, int64[1797]; shuffled."""
    from sklearn.datasets import load_digits

    found = load_digits()
    order = np.random.default_rng(0).permutation(len(found.target))
    pictures = np.rint(found.images * (255 / 16)).astype(np.uint8)
    return pictures[order], found.target.astype(np.int64)[order]


def enlarged(picture: np.ndarray) -> np.ndarray:
    """Return a picture as uint8[16, 16, 3], as the served model enlarges it."""
    return np.asarray(Image.fromarray(picture).convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR))


class Digits:
    """The task for `demi train`: a picture in, ten scores out."""

    def __init__(self) -> None:
        pictures, labels = digits()
        self.x, self.y = pixels(np.stack([enlarged(picture) for picture in pictures])), labels

    def model(self) -> Any:
        """Return the network: `pixel_values` float32[batch, 3, 16, 16] in, `logits` float32[batch, 10] out."""
        return build()

    def batches(self, position: Any) -> Iterator[Any]:
        """Yield pictures and digits; each batch follows from its number alone."""
        import torch

        for draw in draws(position):
            rows = draw.integers(HELD_OUT, len(self.x), BATCH)
            yield torch.from_numpy(self.x[rows]), torch.from_numpy(self.y[rows])

    def loss(self, model: Any, batch: Any) -> Any:
        """Return the cross-entropy, computed in FP32."""
        from torch.nn import functional

        return functional.cross_entropy(model(batch[0])["logits"].float(), batch[1])

    def evaluate(self, model: Any) -> dict[str, float]:
        """Return the share of right answers on the pictures held out."""
        import torch

        found = model(torch.from_numpy(self.x[:HELD_OUT]))["logits"].argmax(1)
        return {"accuracy": (found == torch.from_numpy(self.y[:HELD_OUT])).float().mean().item()}


def build() -> Any:
    """Return the untrained network."""
    import torch
    from torch import nn

    class Block(nn.Module):
        def __init__(self, channels: int) -> None:
            super().__init__()
            self.layers = nn.Sequential(
                nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU(),
                nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels),
            )  # fmt: skip

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(x + self.layers(x))

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features = nn.Sequential(
                nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), Block(32), nn.MaxPool2d(2),
                nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), Block(64),
                nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            )  # fmt: skip
            self.head = nn.Linear(64, 10)

        def forward(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"logits": self.head(self.features(pixel_values))}

    return Network()


def prepare(folder: Path) -> None:
    """Write the processor, the names of the classes, and the pictures held out in a folder for each digit."""
    pictures, labels = digits()
    write_processor(folder, SIDE, SIDE)
    (folder / "labels.txt").write_text("\n".join(map(str, range(10))))
    for number in range(HELD_OUT):
        save_picture(folder / "heldout" / f"{labels[number]}" / f"{number}.png", pictures[number])


def ask(address: str, model: str, folder: Path) -> str:
    """Post the first picture of a seven."""
    picture = min((folder / "heldout" / "7").iterdir())
    found = ask_file(address, model, picture)
    return f"a picture of 7 is read as {found['label'][0]} (score {found['scores'].max():.3f})"


DOMAIN = Domain(
    name="vision",
    data="real: 1,797 scanned digits (scikit-learn)",
    task="examples.domains.vision:Digits",
    steps=150,
    prepare=prepare,
    measures=(Measure("accuracy", "accuracy"),),
    ask=ask,
    export=("--image-processor", "{folder}", "--labels", "{folder}/labels.txt"),
)


if __name__ == "__main__":
    raise SystemExit(main(DOMAIN))
