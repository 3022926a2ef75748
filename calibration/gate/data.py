"""Evaluation data: inputs and labels from files, cut into batches that both models of a bundle can run."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from demi.arrays import as_array
from demi.bundles.manifest import Manifest
from demi.calibration.raw_data import LABEL, is_raw
from demi.calibration.samples import fit_samples, load_arrays
from demi.errors import SampleError
from demi.tensors import Array, Feeds, TensorSpec

BATCH_ROWS = 32
"""Most rows in one run of a model with a free batch axis, which bounds memory for data of any size."""


@dataclass(frozen=True, slots=True)
class Data:
    """Sets of arrays as they were read, the labels of each set, and a description of where they come from."""

    sets: tuple[Feeds, ...]
    labels: tuple[Array, ...] | None
    """One array for each set; None without labels."""
    origin: str
    raw: bool = False
    """True for texts, images or sounds, which each bundle turns into its own inputs; there are no sets then."""


@dataclass(frozen=True, slots=True)
class Batch:
    """The inputs of one run, their number of samples, and their labels."""

    feeds: Feeds
    samples: int
    labels: Array | None


def read_data(source: str, labels: str | None = None) -> Data:
    """Read inputs by name, first axis samples, from an `.npz` file, a folder of them or `module:function`.

    `labels` names the array with the labels. Raw data, in tables or folders of files, have a column for them, or
    subfolders; they are read when the bundle is known. Raises SampleError when the labels are missing or nothing can be
    read.
    """
    if is_raw(source):
        if labels not in (None, LABEL):
            raise SampleError(f"the labels are in the column `{LABEL}`", where=source, hint="leave --labels out")
        return Data((), None, source, raw=True)
    return _data(load_arrays(source), labels, source)


def data_of(arrays: Mapping[str, Array], labels: str | None = None) -> Data:
    """Return evaluation data from arrays in memory. Raises SampleError as `read_data` does."""
    return _data([{str(name): as_array(array) for name, array in arrays.items()}], labels, "arrays in memory")


def _data(sets: Sequence[Feeds], labels: str | None, source: str) -> Data:
    if labels is None:
        return Data(tuple(sets), None, source)
    for feeds in sets:
        if labels not in feeds:
            raise SampleError(
                f"there is no array `{labels}` with the labels", where=source, hint=f"there is {', '.join(feeds)}"
            )
    inputs = tuple({name: array for name, array in feeds.items() if name != labels} for feeds in sets)
    return Data(inputs, tuple(feeds[labels] for feeds in sets), source)


def batches(data: Data, manifest: Manifest, inputs: Sequence[TensorSpec]) -> Iterator[Batch]:
    """Yield the data in batches of at most `BATCH_ROWS` rows, or of the model's own batch size when that is fixed.

    `inputs` are those of the FP32 model. A set without samples (a picture without boxes, say) is skipped. Raises
    SampleError for data that do not fit, and when no set holds a sample.
    """
    rows, total = rows_of_a_run(manifest), 0
    for index, arrays in enumerate(data.sets):
        where = data.origin if len(data.sets) == 1 else f"{data.origin}, set {index + 1}"
        labels = data.labels[index] if data.labels is not None else None
        names = {spec.name for spec in inputs}
        if rows is None:
            yield Batch(_fit(arrays, inputs, where), 1, _one_for_all(labels, where))
            continue
        if not names or any(name not in arrays or not arrays[name].ndim for name in names):
            _fit(arrays, inputs, where)  # raises, naming what is missing
        count = _count({name: array for name, array in arrays.items() if name in names}, rows, manifest, where)
        total += count
        if labels is not None and (labels.ndim == 0 or len(labels) != count):
            raise SampleError(
                f"{labels.shape[0] if labels.ndim else 1:,} labels for {count:,} samples",
                where=where,
                hint="give one label for each sample, in order",
            )
        for start in range(0, count, rows):
            part = {name: array[start : start + rows] for name, array in arrays.items() if name in names}
            cut = None if labels is None else labels[start : start + rows]
            yield Batch(_fit(part, inputs, where), min(rows, count - start), cut)
    if rows is not None and not total:
        raise SampleError(
            "there are no samples", where=data.origin, hint="give one array per input, first axis samples"
        )


def rows_of_a_run(manifest: Manifest) -> int | None:
    """Return the most samples of one run; None where the first axis is not a batch, and a run is one sample."""
    first = {spec.shape[0] if spec.shape else None for spec in (*manifest.inputs, *manifest.outputs)}
    size = first.pop() if len(first) == 1 else None
    return BATCH_ROWS if isinstance(size, str) else size


def digest_of(sets: Sequence[Feeds], labels: Sequence[Array] | None = None) -> str:
    """Return the SHA-256 of all arrays, which identifies the samples."""
    found = hashlib.sha256()
    named = [(name, feeds[name]) for feeds in sets for name in sorted(feeds)]
    for name, array in [*named, *(("labels", array) for array in labels or ())]:
        plain = np.ascontiguousarray(array.astype(np.str_) if array.dtype.kind == "O" else array)
        found.update(f"{name} {plain.dtype} {plain.shape}\n".encode())
        found.update(plain.tobytes())
    return found.hexdigest()


def _fit(arrays: Feeds, inputs: Sequence[TensorSpec], where: str) -> Feeds:
    return fit_samples([arrays], inputs, where).feeds[0]


def _count(arrays: Feeds, rows: int, manifest: Manifest, where: str) -> int:
    """Return the number of samples: the length of the first axis of all inputs."""
    if not manifest.inputs:
        raise SampleError(
            "the model has no inputs, so no data can be measured", where=where, hint="check it without --data"
        )
    lengths = {name: array.shape[0] if array.ndim else 0 for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        raise SampleError(
            "the inputs hold different numbers of samples: "
            + ", ".join(f"`{name}` {length:,}" for name, length in lengths.items()),
            where=where,
            hint="give every input the same first axis",
        )
    count = next(iter(lengths.values()), 0)
    if isinstance(manifest.inputs[0].shape[0], int) and count % rows:
        raise SampleError(
            f"{count:,} samples do not fill batches of {rows}, the only size that the model takes",
            where=where,
            hint=f"give a multiple of {rows} samples",
        )
    return count


def _one_for_all(labels: Array | None, where: str) -> Array | None:
    """Return the labels of a set that is one sample; their first axis is that sample."""
    if labels is None:
        return None
    if labels.ndim and len(labels) == 1:
        return labels
    raise SampleError(
        f"labels of shape {list(labels.shape)} for a set that is one sample",
        where=where,
        hint="the model has no batch axis: save one .npz per sample, each with labels of length 1",
    )
