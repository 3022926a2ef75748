"""Evaluation data of texts, images or sounds, as the inputs of one bundle."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from demi.bundles.bundle import Bundle
from demi.calibration.gate.data import BATCH_ROWS, Data
from demi.calibration.raw_data import prepared, read_raw
from demi.errors import SampleError
from demi.processing.description import ClassAnswer
from demi.processing.processor import Processor, open_processor
from demi.tensors import Array, Feeds


def for_bundle(data: Data, bundle: Bundle) -> Data:
    """Return raw data as the bundle's inputs, with labels as numbers of its classes; other data are returned as they are.

    Raises SampleError for a bundle that takes tensors only, a row that is wrong, and a label that is not a class.
    """
    if not data.raw:
        return data
    processor = open_processor(bundle)
    if processor is None:
        raise SampleError(
            "the data are texts, images or sounds, but the bundle takes tensors",
            where=data.origin,
            hint="export it with --tokenizer, --image-processor or --feature-extractor",
        )
    found = read_raw(data.origin, [spec.name for spec in processor.inputs])
    numbers = _numbers(found.labels, processor, data.origin) if found.labels else None
    sets: list[Feeds] = []
    labels: list[Array] = []
    for start in range(0, len(found), BATCH_ROWS):
        for run in prepared(found, processor, start, start + BATCH_ROWS):
            sets.append(run.feeds)
            if numbers is not None:
                labels.append(numbers[start + np.array(run.indices)])
    return Data(tuple(sets), tuple(labels) if numbers is not None else None, data.origin)


def _numbers(labels: Sequence[str], processor: Processor, where: str) -> Array:
    """Return labels as numbers of classes: their names are the bundle's, or they are numbers themselves."""
    answer = processor.description.answer
    known = {name: index for index, name in enumerate(answer.labels)} if isinstance(answer, ClassAnswer) else {}
    found = [known.get(label, int(label) if label.isdecimal() else -1) for label in labels]
    if -1 in found:
        wrong = found.index(-1)
        raise SampleError(
            f"row {wrong} has the label `{labels[wrong]}`, which is not a class",
            where=where,
            hint=f"the classes are {', '.join(known) or 'numbers'}",
        )
    return np.array(found, np.int64)
