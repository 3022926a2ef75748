"""Small detectors as their exporters write them: a convolutional network, a decoder, and a selection of boxes.

Weights are drawn from a seed, so the boxes mean nothing; there are a few dozen in each image, with scores of all sizes,
many of them near the threshold and near each other: harder than a trained detector's.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np

from tests.hard.build import HardModel, Net, Tensor

SIDE = 96
STRIDES = (8, 16, 32)
CLASSES = 4
BINS = 8
SCORE = 0.25
"""The minimum score of a box that a suppression returns."""
OVERLAP = 0.45
IMAGES = 4


def silu(net: Net, x: Tensor) -> Tensor:
    """Return x sigmoid(x), as two nodes."""
    return x * net.Sigmoid(x)


def block(net: Net, x: Tensor, wide: int, out: int, stride: int = 1, size: int = 3) -> Tensor:
    """Return a convolution and its activation."""
    return silu(net, net.conv(x, wide, out, size, gain=1.8, strides=[stride, stride]))


def residual(net: Net, x: Tensor, wide: int) -> Tensor:
    """Return two convolutions with a residual connection."""
    return x + block(net, block(net, x, wide, wide // 2), wide // 2, wide)


def backbone(net: Net, image: Tensor) -> list[Tensor]:
    """Return features at the three strides, [batch, 48 | 64 | 96, side, side]."""
    x = residual(net, block(net, block(net, image, 3, 16, 2), 16, 32, 2), 32)
    features = []
    for wide, out in ((32, 48), (48, 64), (64, 96)):
        x = residual(net, block(net, x, wide, out, 2), out)
        features.append(x)
    return features


def heads(net: Net, features: list[Tensor], columns: int, classes: int, spread: float) -> tuple[Tensor, Tensor]:
    """Return box numbers [batch, columns, anchors] and logits [batch, classes, anchors] of all scales."""
    boxes, logits = [], []
    for x, wide in zip(features, (48, 64, 96), strict=True):
        boxes.append(net.Reshape(net.conv(block(net, x, wide, 32), 32, columns, 1, gain=1.0), [0, columns, -1]))
        logits.append(net.Reshape(net.conv(block(net, x, wide, 32), 32, classes, 1, gain=spread), [0, classes, -1]))
    return net.Concat(*boxes, axis=2), net.Concat(*logits, axis=2)


def anchors() -> tuple[np.ndarray, np.ndarray]:
    """Return centres in units of the stride, [2, anchors], and strides, [anchors]."""
    centres, strides = [], []
    for stride in STRIDES:
        side = SIDE // stride
        y, x = np.mgrid[:side, :side] + 0.5
        centres.append(np.stack([x.ravel(), y.ravel()]))
        strides.append(np.full(side * side, stride))
    return np.concatenate(centres, axis=1).astype(np.float32), np.concatenate(strides).astype(np.float32)


def yolo(net: Net) -> tuple[Tensor, Tensor]:
    """Return boxes [batch, anchors, 4] as corners in pixels, and scores [batch, classes, anchors]."""
    numbers, logits = heads(net, backbone(net, net.input("image", 3, SIDE, SIDE)), 4 * BINS, CLASSES, spread=1.0)
    bins = net.Transpose(net.Reshape(numbers, [0, 4, BINS, -1]), perm=[0, 3, 1, 2])
    distances = net.MatMul(net.Softmax(bins * 3.0, axis=-1), np.arange(BINS, dtype=np.float32) / 2)
    near, far = net.slice(distances, 0, 2), net.slice(distances, 2, 4)
    centres, strides = anchors()
    corners = net.Concat(centres.T - near, far + centres.T, axis=-1) * strides[:, None]
    return corners, net.Sigmoid(logits - 3.5)


def yolo_nms() -> HardModel:
    """Return rows (image, x, y, x, y, class, score) of the boxes that a NonMaxSuppression selects."""
    net = Net("yolo_nms", "detectors", 18, 0.8, "")
    boxes, scores = yolo(net)
    chosen = net.NonMaxSuppression(boxes, scores, [100], np.float32([OVERLAP]), np.float32([SCORE]))
    images, classes, places = (net.slice(chosen, i, i + 1) for i in range(3))
    corners = net.GatherND(boxes, net.Concat(images, places, axis=1))
    score = net.unsqueeze(net.GatherND(scores, chosen), 1)
    return finish(
        net, detections=net.Concat(net.cast(images, np.float32), corners, net.cast(classes, np.float32), score, axis=1)
    )


def yolo_end_to_end() -> HardModel:
    """Return rows (x, y, x, y, score, class) of the 100 best pairs of box and class, sorted."""
    net = Net("yolo_end_to_end", "detectors", 18, 0.8, "")
    boxes, scores = yolo(net)
    flat = net.Reshape(net.Transpose(scores, perm=[0, 2, 1]), [0, -1])
    best, ids = net.TopK(flat, [100], axis=1, outputs=2)
    places = net.unsqueeze(net.Div(ids, np.int64(CLASSES)), 2)
    corners = net.GatherND(boxes, places, batch_dims=1)
    labels = net.cast(net.Mod(ids, np.int64(CLASSES)), np.float32)
    return finish(net, detections=net.Concat(corners, net.unsqueeze(best, 2), net.unsqueeze(labels, 2), axis=2))


def ssd() -> HardModel:
    """Return boxes, labels and scores of one image separately: the 60 best boxes of each class, after suppression."""
    net = Net("ssd", "detectors", 18, 0.8, "")
    numbers, logits = heads(net, backbone(net, net.input("image", 3, SIDE, SIDE)), 4, CLASSES + 1, spread=1.0)
    centres, strides = anchors()
    deltas = net.Transpose(numbers, perm=[0, 2, 1])
    middle = net.slice(deltas, 0, 2) * 0.1 + centres.T
    size = net.Exp(net.slice(deltas, 2, 4) * 0.2) * 2.5
    boxes = net.Concat(middle - size * 0.5, middle + size * 0.5, axis=2) * (strides[:, None] / SIDE)
    bias = np.float32([3.0] + [0.0] * CLASSES)[:, None]
    scores = net.slice(net.Softmax(logits + bias, axis=1), 1, CLASSES + 1, 1)
    chosen = net.NonMaxSuppression(boxes, scores, [60], np.float32([OVERLAP]), np.float32([SCORE]))
    found = net.GatherND(scores, chosen)
    best, order = net.TopK(found, net.Shape(found), axis=0, outputs=2)
    chosen = net.Gather(chosen, order, axis=0)
    images, classes, places = (net.slice(chosen, i, i + 1) for i in range(3))
    corners = net.GatherND(boxes, net.Concat(images, places, axis=1))
    return finish(net, 1, boxes=corners, labels=net.Squeeze(classes, [1]) + np.int64(1), scores=best)


def finish(net: Net, images: int = IMAGES, **outputs: Tensor) -> HardModel:
    """Return the detector with images to calibrate it with, and others to evaluate it on."""
    return net.finish(lambda rng: {"image": draw(rng, images)}, **outputs)


def draw(rng: np.random.Generator, images: int) -> np.ndarray:
    """Return pictures of a few soft blobs on a gradient, from -1 to 1."""
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    pictures = rng.uniform(-0.5, 0.5, (images, 3, 1, 1)) + rng.uniform(-0.5, 0.5, (images, 3, 1, 1)) * x
    for _ in range(6):
        middle, width = rng.uniform(0, 1, (2, images, 1, 1, 1)), rng.uniform(0.05, 0.25, (images, 1, 1, 1))
        distance = ((x - middle[0]) ** 2 + (y - middle[1]) ** 2) / width**2
        pictures = pictures + rng.uniform(-1, 1, (images, 3, 1, 1)) * np.exp(-distance)
    return np.clip(pictures + rng.normal(0, 0.03, pictures.shape), -1, 1).astype(np.float32)


DETECTORS: dict[str, Callable[[], HardModel]] = {
    each.__name__: functools.cache(each) for each in (yolo_nms, yolo_end_to_end, ssd)
}
