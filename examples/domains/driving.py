"""Driving: cars, people and signs on a road, scored by matched boxes; synthetic pictures.

    python -m examples.domains.driving

Road scenes are drawn (`examples/domains/roads.py`), so that every box is known. The detector finds the centers of things
on a grid of four pixels, as CenterNet does, and the best twelve boxes are read from it inside of the model. A box counts
as found if its class is right and half of it overlaps (IoU of 0.5); the score is the F1 of a picture, in the mean.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from demi.accuracy.boxes import overlaps
from examples.batches import draws
from examples.domains.asking import ask_file
from examples.domains.domain import Domain, Measure
from examples.domains.pictures import pixels, save_picture, write_processor
from examples.domains.roads import CLASSES, HEIGHT, MOST, WIDTH, Scene, scene
from examples.domains.steps import main

STRIDE, FOUND = 4, 12
"""Pixels of a cell of the grid, and boxes that the model returns for a picture."""
BATCH, TRAINED, HELD_OUT = 16, 400, 100
SCORE, OVERLAP = 0.4, 0.5
"""The lowest score of a box that counts, and the least overlap with a true one."""


class Roads:
    """The task for `demi train`: a picture in, boxes out."""

    def __init__(self) -> None:
        scenes = [scene(seed) for seed in range(TRAINED)]
        self.x = pixels(np.stack([each.picture for each in scenes]))
        self.targets = [grid_of(each) for each in scenes]

    def model(self) -> Any:
        """Return the detector."""
        return build()

    def batches(self, position: Any) -> Iterator[Any]:
        """Yield pictures and their grids; each batch follows from its number alone."""
        import torch

        for draw in draws(position):
            rows = draw.integers(0, len(self.x), BATCH)
            heat, sizes, mask = (np.stack([self.targets[row][part] for row in rows]) for part in range(3))
            yield {name: torch.from_numpy(each) for name, each in
                   {"pixel_values": self.x[rows], "heat": heat, "sizes": sizes, "mask": mask}.items()}  # fmt: skip

    def inputs(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the served model takes: the pictures alone."""
        return {"pixel_values": batch["pixel_values"]}

    def loss(self, model: Any, batch: Mapping[str, Any]) -> Any:
        """Return CenterNet's loss: focal for the centers, L1 for the boxes at them."""
        import torch
        from torch.nn import functional

        pictures = batch["pixel_values"]
        heat, sizes = (each.float() for each in (model(pictures) if model.training else model.grids(pictures)))
        true, mask = batch["heat"], batch["mask"]
        likely = torch.sigmoid(heat)
        centers = true == 1
        at_centers = functional.logsigmoid(heat) * (1 - likely) ** 2 * centers
        elsewhere = functional.logsigmoid(-heat) * likely**2 * (1 - true) ** 4 * ~centers
        count = mask.sum().clamp(min=1)
        return -(at_centers + elsewhere).sum() / count + (abs(sizes - batch["sizes"]) * mask).sum() / count


def grid_of(found: Scene) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return a scene on the grid: heat float32[3, 24, 40], 1 at centers and a Gaussian around; sizes float32[4, 24, 40],
    the distances from a center to the four sides in cells; and the mask of centers, float32[1, 24, 40].
    """
    rows, columns = HEIGHT // STRIDE, WIDTH // STRIDE
    heat, sizes = np.zeros((len(CLASSES), rows, columns), np.float32), np.zeros((4, rows, columns), np.float32)
    mask = np.zeros((1, rows, columns), np.float32)
    y, x = np.mgrid[:rows, :columns]
    for (left, top, right, bottom), kind in zip(found.boxes / STRIDE, found.classes, strict=True):
        column, row = int((left + right) / 2), int((top + bottom) / 2)
        spread = max(0.6, (right - left) / 8), max(0.6, (bottom - top) / 8)
        around = np.exp(-(((x - column) / spread[0]) ** 2 + ((y - row) / spread[1]) ** 2) / 2)
        heat[kind] = np.maximum(heat[kind], around)
        sizes[:, row, column] = column + 0.5 - left, row + 0.5 - top, right - column - 0.5, bottom - row - 0.5
        mask[0, row, column] = 1
    return heat, sizes, mask


def build() -> Any:
    """Return the untrained detector: `pixel_values` float32[batch, 3, 96, 160] in.

    In evaluation it returns `boxes` float32[batch, 12, 4] (left, top, right, bottom in pixels), `scores`
    float32[batch, 12] and `classes` int64[batch, 12], the best first; in training its grids of heat and sizes.
    """
    import torch
    from torch import nn

    def layer(incoming: int, outgoing: int, stride: int = 1) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(incoming, outgoing, 3, stride, padding=1), nn.BatchNorm2d(outgoing), nn.ReLU())

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fine = nn.Sequential(layer(3, 16, 2), layer(16, 32, 2), layer(32, 32))
            self.coarse = nn.Sequential(layer(32, 64, 2), layer(64, 64), layer(64, 64, 2), layer(64, 64))
            self.lift = nn.ConvTranspose2d(64, 32, 4, stride=4)
            self.both = layer(64, 64)
            self.heat, self.sizes = nn.Conv2d(64, len(CLASSES), 1), nn.Conv2d(64, 4, 1)
            nn.init.constant_(self.heat.bias, -2.0)

        def forward(self, pixel_values: torch.Tensor) -> Any:
            found = self.grids(pixel_values)
            return found if self.training else self.best(*found)

        def grids(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            """Return heat float32[batch, 3, 24, 40] and sizes float32[batch, 4, 24, 40]."""
            fine = self.fine(pixel_values)
            both = self.both(torch.cat([fine, self.lift(self.coarse(fine))], 1))
            return self.heat(both), nn.functional.softplus(self.sizes(both))

        def best(self, heat: torch.Tensor, sizes: torch.Tensor) -> dict[str, torch.Tensor]:
            """Return the boxes at the highest peaks of the heat."""
            peaks = torch.where(nn.functional.max_pool2d(heat, 3, 1, 1) == heat, torch.sigmoid(heat), 0.0)
            rows, columns = HEIGHT // STRIDE, WIDTH // STRIDE
            scores, places = peaks.flatten(1).topk(FOUND)
            cells = places % (rows * columns)
            sides = sizes.flatten(2).gather(2, cells.unsqueeze(1).expand(-1, 4, -1))
            x, y = cells % columns + 0.5, cells // columns + 0.5
            left, top, right, bottom = sides.unbind(1)
            boxes = torch.stack([x - left, y - top, x + right, y + bottom], 2) * STRIDE
            return {"boxes": boxes, "scores": scores, "classes": places // (rows * columns)}

    return Network()


def matched(outputs: Mapping[str, np.ndarray], labels: np.ndarray) -> np.ndarray:
    """Return the F1 of each picture, float64[n]: the metric for `demi check`.

    `labels` are float32[n, 6, 5]: class, left, top, right, bottom; rows of -1 are padding.
    """
    parts = (outputs["boxes"], outputs["scores"], outputs["classes"], labels)
    return np.array([_f1(*picture) for picture in zip(*parts, strict=True)])


def _f1(boxes: np.ndarray, scores: np.ndarray, classes: np.ndarray, labels: np.ndarray) -> float:
    """Return the F1 of one picture; 1 where there is nothing and nothing was found."""
    true, kept = labels[labels[:, 0] >= 0], scores >= SCORE
    boxes, classes = boxes[kept], classes[kept]
    overlap = overlaps(boxes.astype(np.float64), true[:, 1:].astype(np.float64))
    overlap = np.where(classes[:, None] == true[None, :, 0], overlap, 0.0)
    hits, free = 0, np.ones(len(true), bool)
    for row in overlap:  # the best score first
        best = int(np.argmax(row * free)) if len(row) else 0
        if len(row) and free[best] and row[best] >= OVERLAP:
            free[best] = False
            hits += 1
    return 2 * hits / (len(boxes) + len(true)) if len(boxes) + len(true) else 1.0


def labels_of(scenes: Sequence[Scene]) -> np.ndarray:
    """Return what is on scenes, float32[n, 6, 5], as `matched` reads it."""
    labels = np.full((len(scenes), MOST, 5), -1, np.float32)
    for row, found in zip(labels, scenes, strict=True):
        row[: len(found.boxes), 0] = found.classes
        row[: len(found.boxes), 1:] = found.boxes
    return labels


def prepare(folder: Path) -> None:
    """Write the processor, the scenes held out with their boxes, and the first of them as a picture."""
    scenes = [scene(10_000 + seed) for seed in range(HELD_OUT)]
    write_processor(folder, HEIGHT, WIDTH)
    pictures = pixels(np.stack([each.picture for each in scenes]))
    np.savez(folder / "heldout.npz", allow_pickle=False, pixel_values=pictures, things=labels_of(scenes))
    save_picture(folder / "road.png", scenes[0].picture)


def ask(address: str, model: str, folder: Path) -> str:
    """Post a picture of a road, and count what is found."""
    found = ask_file(address, model, folder / "road.png")
    names = [CLASSES[int(kind)] for kind in found["classes"][0][found["scores"][0] >= SCORE]]
    true = [CLASSES[kind] for kind in scene(10_000).classes]
    return f"found {', '.join(sorted(names)) or 'nothing'}; on it are {', '.join(sorted(true))}"


DOMAIN = Domain(
    name="driving",
    data="synthetic: drawn road scenes",
    task="examples.domains.driving:Roads",
    steps=200,
    prepare=prepare,
    measures=(Measure("F1 of boxes", "examples.domains.driving:matched", "heldout.npz", "things"),),
    ask=ask,
    export=("--image-processor", "{folder}", "--task", "object-detection"),
    train=("--lr", "3e-3"),
)


if __name__ == "__main__":
    raise SystemExit(main(DOMAIN))
