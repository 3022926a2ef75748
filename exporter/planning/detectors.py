"""Recognize a detector by its outputs: boxes, scores and classes, ordered by a ranking or a suppression.

The layouts that exporters write are known: separate boxes, scores and classes, with or without a count (torchvision,
RT-DETR, TensorRT's EfficientNMS, TensorFlow's detection API), rows of six or more columns (YOLO, end to end), rows of
seven that begin with the image, and the indices that a NonMaxSuppression selects. Both the graph and FP32's outputs are
used.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from demi.accuracy.boxes import flat_rows
from demi.accuracy.detector import Columns, Detector
from demi.errors import InputError
from demi.tensors import Array, Feeds

ORDERING = frozenset({"NonMaxSuppression", "TopK", "NonZero"})
"""Operators whose rows come in an order, or in a number, that scores decide."""

MOVES = frozenset("Cast Identity Squeeze Unsqueeze Reshape Flatten Transpose Slice Gather".split())
"""Operators that pass selected elements on."""

SCORE_WORDS = ("score", "conf", "prob")
CLASS_WORDS = ("class", "label", "categor", "cls")
COUNT_WORDS = ("num", "count", "valid")


def find_detectors(model: ir.Model, references: Sequence[Feeds]) -> tuple[Detector, ...]:
    """Return the detectors whose outputs depend on an ordering operator; `references` are FP32's outputs."""
    deciding = {value.name or "": _ordering_before(value) for value in model.graph.outputs}
    ordered = [name for name, nodes in deciding.items() if nodes]
    selected = [value.name or "" for value in model.graph.outputs if _is_selection(value)]
    if selected:
        return tuple(Detector(boxes=name, places=True) for name in selected)
    found: list[Detector] = []
    for name in ordered:
        known = {each for detector in found for each in detector.outputs}
        detector = _read_layout(name, [other for other in ordered if other not in known], references)
        if detector is not None:
            found.append(_limited(detector, deciding[name], references))
    return tuple(found)


def declared_detector(name: str, model: ir.Model, references: Sequence[Feeds]) -> Detector:
    """Return the detector that an output was declared to belong to; InputError when its layout is not known."""
    names = [value.name or "" for value in model.graph.outputs]
    for candidate in (name, *(other for other in names if other != name)):
        detector = _read_layout(candidate, names, references)
        if detector is not None and name in detector.outputs:
            (value,) = (value for value in model.graph.outputs if value.name == detector.boxes)
            return _limited(detector, _ordering_before(value), references)
    shape = "x".join(map(str, references[0][name].shape))
    raise InputError(
        f"no boxes can be read from output `{name}` ({shape})",
        where=f"--budget {name}:boxes",
        hint="supported are boxes [n, 4] with scores [n] and classes [n], and rows (x, y, x, y, score, class) of one output",
    )


def _ordering_before(value: ir.Value) -> list[ir.Node]:
    """Return the ordering operators that a tensor depends on, those in subgraphs included."""
    seen: set[ir.Node] = set()
    frontier = [value]
    found: list[ir.Node] = []
    while frontier:
        node = frontier.pop().producer()
        if node is None or node in seen:
            continue
        seen.add(node)
        inner = [each for each in _with_bodies(node) if each.op_type in ORDERING]
        found += inner
        frontier += [operand for each in _with_bodies(node) for operand in each.inputs if operand is not None]
    return found


def _with_bodies(node: ir.Node) -> list[ir.Node]:
    graphs = [a.as_graph() for a in node.attributes.values() if a.type is ir.AttributeType.GRAPH]
    return [node, *(inner for graph in graphs for inner in graph.all_nodes())]


def _is_selection(value: ir.Value) -> bool:
    """Return whether an output is the selection of a NonMaxSuppression: rows of (image, class, index)."""
    node = value.producer()
    while node is not None and node.op_type in ("Cast", "Identity") and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    return node is not None and node.op_type == "NonMaxSuppression"


def _read_layout(name: str, names: Sequence[str], references: Sequence[Feeds]) -> Detector | None:
    """Return the detector whose boxes an output holds, or None."""
    tables = [feeds[name] for feeds in references]
    if tables[0].dtype.kind != "f" or tables[0].ndim < 2:
        return None
    width = tables[0].shape[-1]
    if width == 4:
        return _apart(name, names, references)
    return _packed(name, names, references) if width >= 6 else None


def _apart(name: str, names: Sequence[str], references: Sequence[Feeds]) -> Detector | None:
    """Read boxes, scores and classes from separate outputs."""
    lead = [feeds[name].shape[:-1] for feeds in references]
    beside = [
        other
        for other in names
        if other != name
        and all(feeds[other].shape[: len(rows)] == rows for feeds, rows in zip(references, lead, strict=True))
    ]
    flat = [other for other in beside if references[0][other].size == int(np.prod(lead[0]))]
    classes = next((other for other in flat if _is_classes(other, references)), None)
    single = [other for other in flat if other != classes and _is_floats(other, references)]
    by_class = [other for other in beside if _is_table(other, len(lead[0]) + 1, references)]
    scores = next(iter((*single, *by_class)), None)
    if scores is None:
        return None
    numbers = np.concatenate([feeds[scores].ravel() for feeds in references])
    boxes = np.concatenate([flat_rows(feeds[name]) for feeds in references])
    others = tuple(other for other in beside if other not in (scores, classes))
    return Detector(
        boxes=name,
        scores=scores,
        classes=classes,
        count=_count(names, (name, *beside), references),
        others=others,
        by_centre=not _are_corners(boxes),
        logits=bool(np.any((numbers < 0) | (numbers > 1))),
    )


def _packed(name: str, names: Sequence[str], references: Sequence[Feeds]) -> Detector | None:
    """Read everything from the rows of one tensor."""
    tables = [feeds[name] for feeds in references]
    rows = np.concatenate([flat_rows(table) for table in tables])
    rows = rows[np.any(rows != 0, axis=1)]
    width = rows.shape[1]
    layouts = [columns for size, columns in LAYOUTS if size == width or (size == 0 and width > 7)]
    columns = next((each for each in layouts if _fits(rows, each)), None)
    if columns is None:
        return None
    lead = [feeds[name].shape[:-1] for feeds in references]
    others = tuple(
        other
        for other in names
        if other != name and all(feeds[other].shape[: len(a)] == a for feeds, a in zip(references, lead, strict=True))
    )
    first = columns.first
    by_centre = not _are_corners(rows[:, first : first + 4])
    count = _count(names, (name, *others), references)
    return Detector(name, count=count, others=others, columns=columns, by_centre=by_centre)


LAYOUTS: tuple[tuple[int, Columns], ...] = (
    (6, Columns(0, 4, 5)),
    (6, Columns(0, 5, 4)),
    (6, Columns(2, 1, 0)),
    (7, Columns(1, 6, 5, image=0)),
    (7, Columns(3, 2, 1, image=0)),
    (7, Columns(0, 4, 6)),
    (0, Columns(0, 4, 5)),
)
"""Widths (0: any larger) and columns: YOLO, YOLO with class first, DETR-like, YOLOv7, SSD, YOLOX, and with masks."""


def _fits(rows: Array, columns: Columns) -> bool:
    """Return whether the numbers fit the columns: whole classes and images, scores from 0 to 1."""
    whole = [columns.label, columns.image]
    scores = rows[:, columns.score]
    return bool(
        all(np.all((rows[:, i] == np.rint(rows[:, i])) & (rows[:, i] >= -1)) for i in whole if i is not None)
        and np.all((scores >= 0) & (scores <= 1))
        and (not len(rows) or not np.all(scores == np.rint(scores)))
    )


def _is_floats(name: str, references: Sequence[Feeds]) -> bool:
    return references[0][name].dtype.kind == "f"


def _is_table(name: str, axes: int, references: Sequence[Feeds]) -> bool:
    """Return whether an output holds a number for each class of each box."""
    array = references[0][name]
    return array.dtype.kind == "f" and array.ndim == axes and array.shape[-1] > 1


def _is_classes(name: str, references: Sequence[Feeds]) -> bool:
    """Return whether an output holds a class for each box: integers, or whole floats that are not named as scores."""
    if not _is_floats(name, references):
        return True
    lower = name.lower()
    if any(word in lower for word in SCORE_WORDS):
        return False
    numbers = np.concatenate([feeds[name].ravel() for feeds in references])
    return any(word in lower for word in CLASS_WORDS) or bool(numbers.size and np.all(numbers == np.rint(numbers)))


def _count(names: Sequence[str], taken: Iterable[str], references: Sequence[Feeds]) -> str | None:
    """Return the output with the number of boxes of each image: whole numbers, and a name such as `num_detections`."""
    for name in names:
        arrays = [feeds[name] for feeds in references]
        named = any(word in name.lower() for word in COUNT_WORDS)
        small = all(array.ndim <= 2 and array.size <= max(array.shape[:1] or (1,)) for array in arrays)
        if name not in taken and named and small and all(np.all(array == np.rint(array)) for array in arrays):
            return name
    return None


def _are_corners(boxes: Array) -> bool:
    """Return whether four coordinates are two corners: then the second is never before the first."""
    return bool(np.all(boxes[:, 2:] >= boxes[:, :2]))


def _limited(detector: Detector, deciding: Sequence[ir.Node], references: Sequence[Feeds]) -> Detector:
    """Add the overlap threshold of the suppression and the largest number of boxes, where the graph states them."""
    overlaps = {_scalar(node, 3) for node in deciding if node.op_type == "NonMaxSuppression"}
    rows = {len(flat_rows(feeds[detector.boxes])) // _images(feeds[detector.boxes]) for feeds in references}
    ranks = {_scalar(node, 1) for node in deciding if node.op_type == "TopK"}
    overlap = overlaps.pop() if len(overlaps) == 1 else None
    most = rows.pop() if len(rows) == 1 else None
    return replace(detector, overlap=overlap, most=most if most in ranks and detector.count is None else None)


def _images(table: Array) -> int:
    return max(table.shape[0], 1) if table.ndim > 2 else 1


def _scalar(node: ir.Node, position: int) -> float | None:
    value = node.inputs[position] if position < len(node.inputs) else None
    if value is None or value.const_value is None or value.const_value.size != 1:
        return None
    return float(value.const_value.numpy().reshape(()))
