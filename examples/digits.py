"""A small convolutional network that reads handwritten digits, trained here in seconds.

    python examples/digits.py --out work/digits

writes `model.pt` (a plain state_dict: `demi export` builds the module with `--model examples.digits:build`),
`samples.npz` (training images, to measure accuracy on) and `heldout.npz` (images `x` and their `labels` that the
network has never seen), and prints its top-1 accuracy in FP32.
"""

from __future__ import annotations

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

INSTALL = "pip install 'demi-inference[torch,examples]'"
SEED = 2026
EPOCHS = 20
SAMPLES = 64
"""Training images in `samples.npz`."""


def build() -> Any:
    """Return the untrained network: float32[batch, 1, 8, 8] images in, `logits` of ten digits out."""
    _require_packages()
    import torch
    from torch import nn

    class Digits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features = nn.Sequential(
                nn.Conv2d(1, 32, 3, padding=1),
                nn.BatchNorm2d(32),
                nn.ReLU(),
                nn.Conv2d(32, 64, 3, padding=1),
                nn.BatchNorm2d(64),
                nn.ReLU(),
                nn.MaxPool2d(2),
                nn.Conv2d(64, 64, 3, padding=1),
                nn.BatchNorm2d(64),
                nn.ReLU(),
                nn.AdaptiveAvgPool2d(1),
                nn.Flatten(),
            )
            self.head = nn.Linear(64, 10)

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"logits": self.head(self.features(x))}

    return Digits()


def images() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return training images and labels, then held-out ones: a quarter, with every digit in proportion."""
    _require_packages()
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    x = (digits.images / 16).astype(np.float32)[:, None]
    train_x, heldout_x, train_y, heldout_y = train_test_split(
        x, digits.target.astype(np.int64), test_size=0.25, random_state=SEED, stratify=digits.target
    )
    return train_x, train_y, heldout_x, heldout_y


def train(x: np.ndarray, labels: np.ndarray) -> Any:
    """Return the network trained on these images; runs on one machine give the same network."""
    import torch

    torch.manual_seed(SEED)
    model, generator = build(), torch.Generator().manual_seed(SEED)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
    inputs, targets = torch.from_numpy(x), torch.from_numpy(labels)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(inputs), generator=generator).split(64):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(inputs[rows])["logits"], targets[rows]).backward()
            optimizer.step()
        schedule.step()
    return model.eval()


def top1(model: Any, x: np.ndarray, labels: np.ndarray) -> float:
    """Return the share of images that the network classifies correctly."""
    import torch

    with torch.no_grad():
        answers = np.asarray(model(torch.from_numpy(x))["logits"]).argmax(axis=1)
    return float((answers == labels).mean())


def write(out: Path) -> float:
    """Train, write the three files into a folder, and return the held-out top-1."""
    train_x, train_y, heldout_x, heldout_y = images()
    model = train(train_x, train_y)
    import torch

    out.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), out / "model.pt")
    np.savez(out / "samples.npz", allow_pickle=False, x=train_x[:SAMPLES])
    np.savez(out / "heldout.npz", allow_pickle=False, x=heldout_x, labels=heldout_y)
    return top1(model, heldout_x, heldout_y)


def _require_packages() -> None:
    missing = [package for package in ("torch", "sklearn") if find_spec(package) is None]
    if missing:
        sys.exit(f"error: this example needs {', '.join(missing)}\nhint: {INSTALL}")


def main() -> None:
    """Run the example."""
    parser = argparse.ArgumentParser(description="Train a small network on handwritten digits.")
    parser.add_argument("--out", type=Path, default=Path("work/digits"), help="folder to write to (work/digits)")
    out: Path = parser.parse_args().out
    accuracy = write(out)
    print(f"{out / 'model.pt'}: top-1 {100 * accuracy:.2f}% in FP32 on held-out images")


if __name__ == "__main__":
    main()
