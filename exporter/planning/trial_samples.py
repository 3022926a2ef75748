"""Samples for the trials of a search: few enough to be quick, and those with the largest errors in half."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import onnx_ir as ir

from demi.calibration.emulation.trials import TrialRunner
from demi.calibration.profile import RangeProfile
from demi.calibration.samples import Samples
from demi.errors import InferenceError
from demi.exporter.planning.cropping import crop
from demi.runtime.cores import usable_cores
from demi.tensors import Feeds

TRIAL_ELEMENTS = 1 << 22
"""Maximum input elements for trials, from the first sets of samples; the final check uses all."""
TRIAL_SETS = 4

VERIFYING_SETS = 16
"""Maximum number of sets for verifying candidate plans: what few samples cannot show is how much they differ."""

SEARCH_ELEMENTS = 1 << 24
"""Elements of inner float tensors that one trial of the search may compute: about 50 ms on two cores."""

REPEATING_ELEMENTS = 32 * SEARCH_ELEMENTS
"""The same for a repetition of a plan: errors that scatter show on any of the samples."""

EXPLAINING_ELEMENTS = SEARCH_ELEMENTS // 8
"""The same where the trials only explain a plan that is chosen already."""

SHOWN = 0.25
"""Least error of a crop that explains a plan, as a share of the whole sample's."""

SIDE_BY_SIDE_ELEMENTS = 1 << 28
"""Elements that all trials under way together may compute: 1 GiB, of which much is freed during a run."""

PARTS = 16
"""Number of parts that samples are cut into to measure the spread of their errors."""

TOO_LARGE = 8
"""A single sample with more than this many times `SEARCH_ELEMENTS` is cropped."""


def trial_feeds(samples: Samples, sets: int = TRIAL_SETS) -> list[Feeds]:
    """Return the first few sets of samples, within `TRIAL_ELEMENTS`."""
    chosen: list[Feeds] = []
    elements = 0
    for feeds in samples.feeds[:sets]:
        elements += _size(feeds)
        if chosen and elements > TRIAL_ELEMENTS:
            break
        chosen.append(feeds)
    return chosen


def verifying_runner(model: ir.Model, runner: TrialRunner) -> TrialRunner:
    """Return a runner on the samples cut into `PARTS`, which measures their spread; `runner` if they cannot be cut."""
    parts = [part for feeds in runner.feeds for part in cut_rows(model, feeds, len(runner.feeds) / PARTS)]
    if len(parts) == len(runner.feeds):
        return runner
    try:
        return runner.on(parts)
    except InferenceError:  # the model computes with this number of rows only
        return runner


def search_runner(
    model: ir.Model,
    whole: TrialRunner,
    verifier: TrialRunner,
    half: frozenset[str],
    profile: RangeProfile,
    sets: Sequence[Feeds],
) -> TrialRunner:
    """Return a runner for the many trials of a search, on the samples that add most to the error with `half` in half.

    It runs the parts of the samples that `verifier` has, worst first, up to `SEARCH_ELEMENTS` elements of inner
    tensors. If all samples fit, it is `whole`. A sample that is too large alone, such as a large image, is cropped if
    the model runs on a crop.
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


def repeating_runner(
    model: ir.Model, verifier: TrialRunner, runner: TrialRunner, profile: RangeProfile, sets: Sequence[Feeds]
) -> TrialRunner:
    """Return a runner for repetitions of plans: on all samples, or that of the search where they are too large."""
    return verifier if trial_elements(model, verifier, profile, sets) <= REPEATING_ELEMENTS else runner


def explaining_runner(
    model: ir.Model, verifier: TrialRunner, half: frozenset[str], profile: RangeProfile, sets: Sequence[Feeds]
) -> TrialRunner:
    """Return a runner that finds the causes of a plan's error: on the samples that add most to it, cropped if large.

    They are left whole if the crop shows little of the error, as the margins of a picture may.
    """
    inner = trial_elements(model, verifier, profile, sets) / len(verifier.feeds)
    errors = verifier.contributions(half)
    worst = verifier.on([verifier.feeds[max(range(len(errors)), key=errors.__getitem__)]])
    part = _on_a_part(model, worst, worst.feeds[0], EXPLAINING_ELEMENTS / inner if inner else 1.0)
    shown = part.load(part.compare(half))
    return part if shown >= SHOWN * worst.load(worst.compare(half)) else worst


def _on_a_part(model: ir.Model, verifier: TrialRunner, feeds: Feeds, share: float) -> TrialRunner:
    part = crop(model, feeds, share)
    if part is not None:
        with contextlib.suppress(InferenceError):  # the model may require its own sizes
            return verifier.on([part])
    return verifier.on([feeds])


def trial_elements(model: ir.Model, runner: TrialRunner, profile: RangeProfile, sets: Sequence[Feeds]) -> float:
    """Estimate the elements of inner float tensors that one trial of a runner computes; proportional to its inputs."""
    largest = max((_size(feeds) for feeds in sets), default=1)
    return _inner(model, profile) * sum(_size(feeds) for feeds in runner.feeds) / max(largest, 1)


def runs_at_once(model: ir.Model, profile: RangeProfile) -> int:
    """Return the number of trials to run side by side: one per core, as far as their tensors fit into memory."""
    return max(1, min(usable_cores(), SIDE_BY_SIDE_ELEMENTS // max(_inner(model, profile), 1)))


def _inner(model: ir.Model, profile: RangeProfile) -> int:
    """Return the elements of all inner float tensors in one run of the model on a whole set."""
    made = {value.name for node in model.graph.all_nodes() for value in node.outputs}
    return sum(found.elements_per_set for name, found in profile.ranges.items() if name in made)


def _size(feeds: Feeds) -> int:
    return sum(array.size for array in feeds.values())


def cut_rows(model: ir.Model, feeds: Feeds, share: float) -> list[Feeds]:
    """Cut a set into sets of about `share` of its rows; return it whole if its inputs share no free first axis."""
    rows = batch_rows(model, feeds)
    if rows is None or share >= 1:
        return [feeds]
    size = max(1, round(rows * share))
    return [{name: array[at : at + size] for name, array in feeds.items()} for at in range(0, rows, size)]


def batch_rows(model: ir.Model, feeds: Feeds) -> int | None:
    """Return the number of rows of a set; None if its inputs share no free first axis."""
    sizes = set()
    for value in model.graph.inputs:
        array = feeds.get(value.name or "")
        if array is None or not array.ndim or value.shape is None or isinstance(value.shape[0], int):
            return None
        sizes.add(array.shape[0])
    return sizes.pop() if len(sizes) == 1 else None


def scale_to_rows(feeds: Sequence[Feeds], rows: int) -> float:
    """Return the ratio of `rows` to the rows of the largest set, at least 1; 1 if the first axis is not a batch."""
    sizes = [{array.shape[0] for array in each.values() if array.ndim} for each in feeds]
    largest = max((size.pop() for size in sizes if len(size) == 1), default=rows)
    return max(1.0, rows / max(largest, 1))
