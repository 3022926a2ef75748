"""Does half precision read the digits as well as FP32 does? Held-out images through both models of a bundle.

    python examples/digits_accuracy.py models/digits --data work/digits/heldout.npz

Half runs under the emulator, which rounds every tensor that the model stores in half, as a GPU does. Ends with 1 when
half is more than 0.2 points worse.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from calibration.gate.models import emulate
from demi.bundle import open_bundle
from demi.runtime.ort import open_session

POINTS = 0.2
"""How many percentage points of top-1 half may lose."""


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Top-1 of both models on the same images."""

    images: int
    fp32: float
    half: float
    changed: int
    """Images that the two models read differently."""

    def __bool__(self) -> bool:
        return 100 * (self.fp32 - self.half) <= POINTS


def measure(bundle_path: Path, data: Path) -> Accuracy:
    """Both models of a bundle on the images `x` and `labels` of an `.npz` file."""
    with np.load(data, allow_pickle=False) as archive:
        x, labels = archive["x"], archive["labels"]
    bundle = open_bundle(bundle_path)
    assert bundle.reference_path is not None, "the bundle was exported with --no-reference"
    fp32 = open_session(bundle.reference_path).run({"x": x})["logits"].argmax(axis=1)
    half = emulate(bundle, [{"x": x}])[0]["logits"].argmax(axis=1)
    return Accuracy(
        len(x), float((fp32 == labels).mean()), float((half == labels).mean()), int(np.count_nonzero(fp32 != half))
    )


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="Top-1 of FP32 and half on held-out digits.")
    parser.add_argument("bundle", type=Path, help="the bundle that demi export wrote")
    parser.add_argument("--data", type=Path, default=Path("work/digits/heldout.npz"), help="images x and labels")
    args = parser.parse_args()
    found = measure(args.bundle, args.data)
    print(f"top-1 on {found.images} held-out images: FP32 {100 * found.fp32:.2f}%, half {100 * found.half:.2f}%")
    print(f"images read differently: {found.changed}")
    return 0 if found else 1


if __name__ == "__main__":
    raise SystemExit(main())
