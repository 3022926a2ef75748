"""Warnings and notes about an export."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from demi.cli.plan_tables import unusable_inputs

if TYPE_CHECKING:
    from demi.calibration.samples import Samples
    from demi.exporter.request import Exported


def warnings_of(result: Exported) -> Iterator[str]:
    """Yield the reasons to trust the result less than its figures suggest."""
    from demi.exporter.sources.samples import EXAMPLES

    if result.samples.drawn:
        yield f"ranges and accuracy are only estimates, measured on {result.samples.origin}; give real inputs with --sample"
    if result.samples.origin == EXAMPLES:
        yield f"measured on {_rows_of(result.samples)} only, {EXAMPLES}: give inputs of your own with --sample"
    if result.fails_here:
        yield f"the half model cannot run on this CPU, where `demi serve` answers with its FP32 reference: {result.fails_here}"
    yield from result.warnings
    for line in (*result.conversion.comparison.unmeasured(), *unusable_inputs(result.samples)):
        yield f"{line}; the error of half precision cannot be measured there"


def _rows_of(samples: Samples) -> str:
    """Return the number of rows in all samples, along the first axis of their first input."""
    first = [next(iter(feeds.values()), None) for feeds in samples.feeds]
    rows = sum(array.shape[0] if array is not None and array.ndim else 1 for array in first)
    return "1 row" if rows == 1 else f"{rows} rows"


def notes_of(result: Exported) -> Iterator[str]:
    """Yield what is worth knowing about the bundle."""
    from demi.exporter.planning.uneven import in_words

    if result.conversion.lowered.losses:
        yield _losses(result)
    yield from in_words(result.conversion.uneven)
    yield from result.notes
    if (rescaling := result.conversion.rescaling) is not None and rescaling.why_not:
        yield f"not rescaled: {rescaling.why_not}"
    if result.no_report:
        yield result.no_report
    if unjoined := result.manifest.batch.reason:
        yield f"requests are not batched: {unjoined}"
    for axis in result.manifest.batch.pad.axes:
        yield f"requests of different lengths may share a run: `{axis}` is padded without changing the answers"
    yield from result.manifest.varying.describe()


def why_not_faster(precision: str) -> str | None:
    """Return why half brings no time on this machine; None if it does, or nothing is known."""
    from demi.runtime.base import Device
    from demi.runtime.cuda.bindings import find_gpu
    from demi.runtime.cuda.capability import why_not_faster as why_not_on_gpu
    from demi.runtime.openvino.capability import lacking_units, read_cpu
    from demi.runtime.openvino.session import openvino_version

    gpu = find_gpu(Device("cuda"))
    if gpu is None and openvino_version() and (cpu := read_cpu()).has_units(precision):
        lacking = lacking_units(cpu, precision)
        return (
            f"{lacking}: half saves memory there, and `demi bench` measures whether it saves time" if lacking else None
        )
    return why_not_on_gpu(gpu, precision)


def _losses(result: Exported) -> str:
    losses = result.conversion.lowered.losses
    worst = sorted(losses.items(), key=lambda item: -item[1].overflowed - item[1].vanished)
    named = ", ".join(
        f"`{name}` ({loss.vanished:,} become zero, {loss.overflowed:,} overflow)" for name, loss in worst[:3]
    )
    more = f" and {len(worst) - 3} more" if len(worst) > 3 else ""
    return (
        f"weights lose values in half precision: {named}{more}; the measured error includes this, accuracy.json has all"
    )
