"""Medical imaging: gray and white matter on slices of a brain, scored by Dice; real scans.

    python -m examples.domains.medical

The pictures are T1-weighted MRI: the ICBM152 template of the Montreal Neurological Institute, an average of 152 people,
with its maps of gray and white matter, as the package `nilearn` ships them. A small U-Net finds three classes of pixels:
gray matter, white matter, and everything else. Every tenth to eighth slice is held out with a gap around it. All slices
are of one average brain, so the score is not that of a new patient.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from examples.batches import draws
from examples.demo import DemoError
from examples.domains.asking import ask_file
from examples.domains.domain import Domain, Measure
from examples.domains.pictures import pixels, save_picture, write_processor
from examples.domains.steps import main

INSTALL = "pip install --no-deps nilearn"
CLASSES = ("other", "gray matter", "white matter")
FIRST, LAST = 40, 150
"""Slices, from below to above, that show much of the brain."""
BATCH = 8


def volume(name: str) -> np.ndarray:
    """Return a volume of the template, uint8[x, y, z], 1 mm a voxel. Raises DemoError without the package."""
    spec = find_spec("nilearn")
    if spec is None or spec.origin is None:
        raise DemoError(f"this example needs nilearn: {INSTALL}")
    path = Path(spec.origin).parent / "datasets" / "data" / f"mni_icbm152_{name}_tal_nlin_sym_09a_converted.nii.gz"
    return read_nifti(gzip.decompress(path.read_bytes()))


def read_nifti(data: bytes) -> np.ndarray:
    """Return the voxels of a NIfTI-1 file with one byte a voxel, uint8[x, y, z]. Raises ValueError for another kind."""
    header = np.frombuffer(data[:348], np.uint8)
    if header[:4].view("<i4")[0] != 348 or header[70:72].view("<i2")[0] != 2:
        raise ValueError("this is not a little-endian NIfTI-1 file with one byte a voxel")
    shape = tuple(header[42:48].view("<i2"))
    start = int(header[108:112].view("<f4")[0])
    return np.frombuffer(data, np.uint8, int(np.prod(shape)), start).reshape(shape, order="F")


def slices() -> tuple[np.ndarray, np.ndarray]:
    """Return slices as pictures, uint8[110, 112, 96], and their classes, int64[110, 112, 96]; 2 mm a pixel."""
    scan, gray, white = (
        np.moveaxis(volume(name)[2:194:2, 4:228:2, FIRST:LAST], -1, 0).transpose(0, 2, 1)[:, ::-1]
        for name in ("t1", "gm", "wm")
    )
    half = 128
    classes = np.where(white >= half, 2, np.where(gray >= half, 1, 0))
    return np.ascontiguousarray(scan), classes.astype(np.int64)


def split() -> tuple[np.ndarray, np.ndarray]:
    """Return the numbers of the slices to train on and held out: of ten, three are held out between two left out."""
    place = np.arange(LAST - FIRST) % 10
    return np.flatnonzero(place < 5), np.flatnonzero((place >= 6) & (place <= 8))


def colored(pictures: np.ndarray) -> np.ndarray:
    """Return gray pictures with three equal channels, uint8[n, height, width, 3]."""
    return np.repeat(pictures[..., None], 3, axis=-1)


class Brain:
    """The task for `demi train`: a slice in, scores of three classes for every pixel out."""

    def __init__(self) -> None:
        pictures, classes = slices()
        chosen, _ = split()
        self.x, self.y = pixels(colored(pictures[chosen])), classes[chosen]

    def model(self) -> Any:
        """Return the network."""
        return build()

    def batches(self, position: Any) -> Iterator[Any]:
        """Yield slices, half of them mirrored, and their classes; each batch follows from its number alone."""
        import torch

        for draw in draws(position):
            rows = draw.integers(0, len(self.x), BATCH)
            way = int(draw.choice([-1, 1]))
            x, y = self.x[rows][..., ::way], self.y[rows][..., ::way]
            yield torch.from_numpy(x.copy()), torch.from_numpy(y.copy())

    def loss(self, model: Any, batch: Any) -> Any:
        """Return the cross-entropy of all pixels, computed in FP32."""
        from torch.nn import functional

        return functional.cross_entropy(model(batch[0])["scores"].float(), batch[1])


def build() -> Any:
    """Return the untrained U-Net: `pixel_values` float32[batch, 3, h, w] in, `scores` float32[batch, 3, h, w] out."""
    import torch
    from torch import nn

    def block(incoming: int, outgoing: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(incoming, outgoing, 3, padding=1), nn.BatchNorm2d(outgoing), nn.ReLU(),
            nn.Conv2d(outgoing, outgoing, 3, padding=1), nn.BatchNorm2d(outgoing), nn.ReLU(),
        )  # fmt: skip

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down = nn.ModuleList([block(3, 16), block(16, 32), block(32, 64)])
            self.lift = nn.ModuleList(
                [nn.ConvTranspose2d(64, 32, 2, stride=2), nn.ConvTranspose2d(32, 16, 2, stride=2)]
            )
            self.up = nn.ModuleList([block(64, 32), block(32, 16)])
            self.head = nn.Conv2d(16, len(CLASSES), 1)

        def forward(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
            one = self.down[0](pixel_values)
            two = self.down[1](nn.functional.max_pool2d(one, 2))
            three = self.down[2](nn.functional.max_pool2d(two, 2))
            second = self.up[0](torch.cat([two, self.lift[0](three)], 1))
            return {"scores": self.head(self.up[1](torch.cat([one, self.lift[1](second)], 1)))}

    return Network()


def prepare(folder: Path) -> None:
    """Write the processor, the slices held out with their classes, and one of them as a picture."""
    pictures, classes = slices()
    _, chosen = split()
    write_processor(folder)
    np.savez(
        folder / "heldout.npz", allow_pickle=False, pixel_values=pixels(colored(pictures[chosen])), mask=classes[chosen]
    )
    middle = chosen[len(chosen) // 2]
    save_picture(folder / "slice.png", pictures[middle])
    save_picture(folder / "mask.png", (classes[middle] * 127).astype(np.uint8))


def ask(address: str, model: str, folder: Path) -> str:
    """Post one slice, and count its pixels: a pixel is 2 mm wide and high."""
    found = ask_file(address, model, folder / "slice.png")["scores"][0].argmax(0)
    return ", ".join(
        f"{name} {(found == number).sum() * 0.04:.0f} cm²" for number, name in enumerate(CLASSES) if number
    )


DOMAIN = Domain(
    name="medical",
    data="real: MRI slices of the ICBM152 brain (nilearn)",
    task="examples.domains.medical:Brain",
    steps=120,
    prepare=prepare,
    measures=(Measure("Dice", "dice", "heldout.npz", "mask"),),
    ask=ask,
    export=("--image-processor", "{folder}", "--task", "image-segmentation"),
)


if __name__ == "__main__":
    raise SystemExit(main(DOMAIN))
