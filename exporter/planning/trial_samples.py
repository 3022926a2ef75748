"""The samples that a search tries its plans on: few enough to be quick, and those that half gets wrong most."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import onnx_ir as ir

from demi.calibration.emulation.trials import TrialRunner
from demi.calibration.profile import RangeProfile
from demi.calibration.samples import Samples
from demi.errors import InferenceError
from demi.exporter.planning.cropping import crop
from demi.tensors import Feeds

TRIAL_ELEMENTS = 1 << 22
"""Input elements that candidate plans are verified on: the first sets of samples, while the final check uses all."""
TRIAL_SETS = 4

SEARCH_ELEMENTS = 1 << 24
"""Elements of inner float tensors that one trial of the search may compute: about 50 ms on two cores."""

PARTS = 16
"""Into how many parts samples are cut to see how much their errors differ."""

TOO_LARGE = 8
"""How many times `SEARCH_ELEMENTS` a single sample may have before a part of it is taken."""


def trial_feeds(samples: Samples) -> list[Feeds]:
    """The sets of samples that candidate plans are verified on: the first few, within `TRIAL_ELEMENTS`."""
    chosen: list[Feeds] = []
    elements = 0
    for feeds in samples.feeds[:TRIAL_SETS]:
        elements += _size(feeds)
        if chosen and elements > TRIAL_ELEMENTS:
            break
        chosen.append(feeds)
    return chosen


def verifying_runner(model: ir.Model, runner: TrialRunner) -> TrialRunner:
    """A runner that looks at its samples in `PARTS`, to see how much they differ; itself where they cannot be cut."""
    parts = [part for feeds in runner.feeds for part in cut_rows(model, feeds, len(runner.feeds) / PARTS)]
    if len(parts) == len(runner.feeds):
        return runner
    try:
        return runner.on(parts)
    except InferenceError:  # its shapes are fixed to this number of rows
        return runner


def search_runner(
    model: ir.Model,
    whole: TrialRunner,
    verifier: TrialRunner,
    half: frozenset[str],
    profile: RangeProfile,
    sets: Sequence[Feeds],
) -> TrialRunner:
    """A runner for the many trials of a search: on the samples that add most to the error when `half` is half.

    It takes parts of the samples, as `verifier` has them, the worst first, as long as their inner tensors have at most
    `SEARCH_ELEMENTS` elements; where all samples fit it is `whole`, their runner. Of a sample that is too large alone, a
    large image say, it takes a part, where the model runs on parts.
    """
    total = trial_elements(model, verifier, profile, sets)
    if total <= SEARCH_ELEMENTS:
        return whole
    inner = total / len(verifier.feeds)
    errors = verifier.contributions(half)
    worst = sorted(range(len(errors)), key=lambda index: -errors[index])
    if inner <= TOO_LARGE * SEARCH_ELEMENTS:
        return verifier.on([verifier.feeds[index] for index in worst[: max(1, int(SEARCH_ELEMENTS / inner))]])
    return _on_a_part(model, verifier, verifier.feeds[worst[0]], SEARCH_ELEMENTS / inner)


def _on_a_part(model: ir.Model, verifier: TrialRunner, feeds: Feeds, share: float) -> TrialRunner:
    part = crop(model, feeds, share)
    if part is not None:
        with contextlib.suppress(InferenceError):  # it may compute with the sizes it was made for
            return verifier.on([part])
    return verifier.on([feeds])


def trial_elements(model: ir.Model, runner: TrialRunner, profile: RangeProfile, sets: Sequence[Feeds]) -> float:
    """About how many elements of inner float tensors one trial of a runner computes: they grow with its inputs."""
    made = {value.name for node in model.graph.all_nodes() for value in node.outputs}
    inner = sum(found.elements_per_set for name, found in profile.ranges.items() if name in made)
    largest = max((_size(feeds) for feeds in sets), default=1)
    return inner * sum(_size(feeds) for feeds in runner.feeds) / max(largest, 1)


def _size(feeds: Feeds) -> int:
    return sum(array.size for array in feeds.values())


def cut_rows(model: ir.Model, feeds: Feeds, share: float) -> list[Feeds]:
    """A set cut into sets of about that share of its rows; the set itself where its inputs share no free first axis."""
    rows = batch_rows(model, feeds)
    if rows is None or share >= 1:
        return [feeds]
    size = max(1, round(rows * share))
    return [{name: array[at : at + size] for name, array in feeds.items()} for at in range(0, rows, size)]


def batch_rows(model: ir.Model, feeds: Feeds) -> int | None:
    """How many rows a set has; None where its inputs share no free first axis."""
    sizes = set()
    for value in model.graph.inputs:
        array = feeds.get(value.name or "")
        if array is None or not array.ndim or value.shape is None or isinstance(value.shape[0], int):
            return None
        sizes.add(array.shape[0])
    return sizes.pop() if len(sizes) == 1 else None


def scale_to_rows(feeds: Sequence[Feeds], rows: int) -> float:
    """How many times the largest set of samples goes into `rows` rows (1 when its first axis is no batch)."""
    sizes = [{array.shape[0] for array in each.values() if array.ndim} for each in feeds]
    largest = max((size.pop() for size in sizes if len(size) == 1), default=rows)
    return max(1.0, rows / max(largest, 1))
