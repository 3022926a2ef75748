"""Samples: sets of inputs to measure on, read from files or drawn at random with a seed."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from demi.arrays import as_array
from demi.bundles.archives import is_array, read_arrays
from demi.errors import DemiError, SampleError
from demi.files import why_unreadable
from demi.tensors import Array, Dim, DType, Feeds, TensorSpec, check_feeds
from demi.user_code import current_folder_importable

FREE_AXIS = 16
"""Size of a free axis other than the batch in drawn samples."""

_HOW_TO_SAVE = "save them with numpy.savez(path, input_name=array, ...)"


@dataclass(frozen=True, slots=True)
class Samples:
    """Sets of inputs that fit the model, and a description of where they come from."""

    feeds: tuple[Feeds, ...]
    origin: str
    drawn: bool = False
    """True if they were drawn at random, so that measurements are only a guess about real inputs."""

    def __len__(self) -> int:
        return len(self.feeds)


MOST_SETS = 1024
"""Most sets of inputs that are taken from an iterator."""


def load_arrays(source: str | Path) -> list[Feeds]:
    """Read arrays by name from an `.npz` file, all `.npz` files of a folder by name, or `package.module:function`.

    The function is called without arguments and yields {input name: array}; at most `MOST_SETS` are taken. Raises
    SampleError when there is nothing to read, and for files other than plain `.npz` (pickled objects are refused).
    """
    if not str(source).strip():
        raise SampleError(
            "the name of the samples is empty", hint="name an .npz file, a folder of them or package.module:function"
        )
    path = Path(source)
    if isinstance(source, str) and ":" in source and not path.exists():
        return _iterate(source)
    if path.is_dir():
        files = sorted(path.glob("*.npz"))
        if not files:
            raise SampleError("the sample folder holds no .npz files", where=str(path), hint=_HOW_TO_SAVE)
        return [feeds for file in files for feeds in load_arrays(file)]
    try:
        if not is_array(path):
            return [{name: as_array(array) for name, array in read_arrays(path).items()}]
    except FileNotFoundError as error:
        raise SampleError("no such sample file", where=str(path), hint=f"check the path; {_HOW_TO_SAVE}") from error
    except Exception as error:  # damaged archives make NumPy and zipfile raise almost anything
        why = why_unreadable(error)
        raise SampleError(f"the samples cannot be read: {why}", where=str(path), hint=_HOW_TO_SAVE) from error
    raise SampleError(
        "this is a single array; samples are `.npz` files with one array per input", where=str(path), hint=_HOW_TO_SAVE
    )


def _iterate(name: str) -> list[Feeds]:
    """Return the sets of inputs that a user's function yields."""
    module, _, function = name.partition(":")
    try:
        with current_folder_importable():
            sets = itertools.islice(getattr(importlib.import_module(module), function)(), MOST_SETS)
            found = [{key: as_array(array) for key, array in feeds.items()} for feeds in sets]
    except (Exception, SystemExit) as error:  # user code that calls sys.exit(0) must not look like success
        raise SampleError(
            f"`{name}` returned no samples: {type(error).__name__}: {error}",
            where="--sample",
            hint="name a function without arguments that yields {input name: array}",
        ) from error
    if not found:
        raise SampleError(f"`{name}` returned no samples: it yields nothing", hint="let it yield {input name: array}")
    return found


def fit_samples(arrays: Sequence[Feeds], specs: Sequence[TensorSpec], origin: str) -> Samples:
    """Check arrays against the model's inputs; extra arrays (labels, say) are dropped, integers may be widened.

    Raises SampleError, naming the input, when one is missing or has another dtype or shape.
    """
    fitted = []
    for index, feeds in enumerate(arrays):
        wanted = {spec.name: _widen_integers(feeds[spec.name], spec) for spec in specs if spec.name in feeds}
        try:
            fitted.append(check_feeds(specs, wanted, cast_floats=True))
        except DemiError as error:
            raise SampleError(
                error.message,
                where=f"{origin}, set {index + 1}" if len(arrays) > 1 else origin,
                hint=error.hint or _held(feeds),
            ) from error
    if not fitted:
        raise SampleError("there are no samples", where=origin, hint="give at least one set of inputs")
    _require_elements(fitted, origin)
    for index, feeds in enumerate(fitted):
        _require_numbers(feeds, origin if len(fitted) == 1 else f"{origin}, set {index + 1}")
    return Samples(tuple(fitted), origin)


def _held(feeds: Feeds) -> str:
    return "there is " + ", ".join(f"{name} ({array.dtype})" for name, array in feeds.items())


def draw_samples(
    specs: Sequence[TensorSpec],
    seed: int,
    *,
    index_limits: Mapping[str, int] | None = None,
    sets: int = 4,
    batch: int = 2,
) -> Samples:
    """Draw samples from the input specs: normal floats, ids below `index_limits` (else 2), masks of ones.

    An integer input whose name contains `mask` is a mask. A free axis has length `batch` when it is always the first
    axis, and `FREE_AXIS` otherwise. The result is marked as `drawn`.
    """
    rng = np.random.default_rng(seed)
    limits = index_limits or {}
    inner = {dim for spec in specs for dim in spec.shape[1:]}
    shapes = {spec.name: [_size(dim, inner, batch) for dim in spec.shape] for spec in specs}
    feeds = tuple(
        {spec.name: _draw(rng, spec, shapes[spec.name], limits.get(spec.name, 2)) for spec in specs}
        for _ in range(sets)
    )
    return Samples(feeds, f"{sets} sets of {batch} rows drawn at random (seed {seed})", drawn=True)


def split_rows(feeds: Feeds, specs: Sequence[TensorSpec], rows: int) -> list[Feeds]:
    """Cut one set of inputs into sets of at most `rows` rows, along a batch axis that all inputs share by name."""
    first = {spec.shape[0] if spec.shape else None for spec in specs}
    sizes = {feeds[spec.name].shape[:1] for spec in specs}
    if len(first) != 1 or len(sizes) != 1 or not isinstance(first.pop(), str):
        return [feeds]
    (size,) = sizes.pop()
    return [
        {name: array[start : start + rows] for name, array in feeds.items()} for start in range(0, max(size, 1), rows)
    ]


def _size(dim: Dim, inner: Collection[Dim], batch: int) -> int:
    if isinstance(dim, int):
        return dim
    return FREE_AXIS if dim in inner else batch


def _draw(rng: np.random.Generator, spec: TensorSpec, shape: list[int], limit: int) -> Array:
    if spec.dtype.is_float:
        return rng.standard_normal(shape).astype(spec.dtype.numpy if spec.dtype is not DType.BF16 else np.float32)
    if spec.dtype is DType.BYTES:
        raise SampleError(
            f"input `{spec.name}` holds strings, which cannot be drawn",
            hint="give real inputs with --sample inputs.npz",
        )
    if spec.dtype is DType.BOOL or "mask" in spec.name.lower():
        return np.ones(shape, spec.dtype.numpy)
    return rng.integers(0, limit, shape).astype(spec.dtype.numpy)


def _require_elements(sets: Sequence[Feeds], where: str) -> None:
    """Raise SampleError when all inputs of all sets are empty: every output would be right.

    Single inputs may be empty, such as a decoder's cache at its first step.
    """
    if any(array.size for feeds in sets for array in feeds.values()) or not any(sets):
        return
    name, array = next((name, array) for feeds in sets for name, array in feeds.items())
    raise SampleError(
        f"all inputs are empty: `{name}` has shape {list(array.shape)}",
        where=where,
        hint="give samples with rows",
    )


def _require_numbers(feeds: Feeds, where: str) -> None:
    """Raise SampleError for an input without a finite number, which would prove nothing."""
    for name, array in feeds.items():
        if array.size and array.dtype.kind == "f" and not np.isfinite(array).any():
            raise SampleError(
                f"input `{name}` holds only NaN and infinities",
                where=where,
                hint="nothing can be measured on such samples: give real inputs",
            )


def _widen_integers(array: Array, spec: TensorSpec) -> Array:
    """Convert integers to the declared width if no value changes: users often save int32 for an int64 input."""
    if array.dtype.kind in "iu" and spec.dtype.numpy.kind in "iu" and array.dtype != spec.dtype.numpy:
        cast = array.astype(spec.dtype.numpy)
        return cast if np.array_equal(cast, array) else array
    return array
