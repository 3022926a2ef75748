"""Accuracy of a model on several servers as on one that saw all their samples.

The comparisons add up exactly (`demi.server.accuracy.summary`), so the joined verdict is that of one server, as long as no
window was full. `demi.server.ray.drift` reaches a verdict for all from it; the joined answer reports what each server does.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import reduce
from operator import add
from typing import Any

import msgspec

from demi.server.accuracy.guard import MAX_RECORDS
from demi.server.accuracy.monitor import MAX_CHANGES
from demi.server.accuracy.summary import Summary
from demi.server.accuracy.window import WORST, WindowAccuracy, assess_summaries
from demi.server.models.describe import AccuracyReport
from demi.server.protocol.schemas import AccuracyAnswer, GuardCounts, RangeCounts, ShadowCounts, WorstRequest


def join_accuracy(reports: Sequence[AccuracyReport]) -> AccuracyAnswer:
    """Return the accuracy of one model version over all reports, of which there is at least one."""
    answers = [report.answer for report in reports]
    first = answers[0]
    joined = assess(reports)
    return AccuracyAnswer(
        name=first.name,
        version=first.version,
        precision=_alike([answer.precision for answer in answers]),
        state="over" if any(report.over for report in reports) else joined.text,
        degraded=any(answer.degraded for answer in answers),
        serving=_alike([answer.serving for answer in answers]),
        on_drift=first.on_drift,
        samples=joined.samples,
        outputs=msgspec.to_builtins(joined.outputs),
        worst=_worst([each for answer in answers for each in answer.worst]),
        shadow=_join_shadow([answer.shadow for answer in answers if answer.shadow]),
        guard=_join_guard([answer.guard for answer in answers]),
        ranges=_join_ranges([each for answer in answers for each in answer.ranges]),
        changes=sorted((each for answer in answers for each in answer.changes), key=_when)[-MAX_CHANGES:],
        not_compared=sorted({name for answer in answers for name in answer.not_compared}),
        vouches_for=first.vouches_for,
    )


def assess(reports: Sequence[AccuracyReport]) -> WindowAccuracy:
    """Return the accuracy of every output over the windows of all reports, against the budget."""
    by_output: dict[str, list[Summary]] = {}
    for report in reports:
        for output, summary in report.summaries.items():
            by_output.setdefault(output, []).append(summary)
    summed = {output: reduce(add, summaries) for output, summaries in by_output.items()}
    return assess_summaries(summed, sum(report.answer.samples for report in reports), reports[0].budget)


def _alike(values: Sequence[str]) -> str:
    """Return the common value; several, while servers differ, with commas between them."""
    return ",".join(sorted(set(values)))


def _worst(found: Sequence[WorstRequest]) -> list[WorstRequest]:
    return sorted(found, key=lambda each: -(math.inf if each.relative_l2 is None else each.relative_l2))[:WORST]


def _join_shadow(found: Sequence[ShadowCounts]) -> ShadowCounts | None:
    if not found:
        return None
    dropped: Counter[str] = Counter()
    for counts in found:
        dropped.update(counts.dropped)
    return ShadowCounts(max(each.share for each in found), sum(each.samples for each in found), dict(dropped))


def _join_guard(found: Sequence[GuardCounts]) -> GuardCounts:
    requests = sorted((request for counts in found for request in counts.requests), key=_when)
    reruns, unrepaired = (sum(getattr(each, name) for each in found) for name in ("reruns", "unrepaired"))
    return GuardCounts(reruns, unrepaired, requests[-MAX_RECORDS:])


def _join_ranges(found: Sequence[RangeCounts]) -> list[RangeCounts]:
    by_input: dict[str, RangeCounts] = {}
    for each in found:
        outside = each.outside + (by_input[each.input].outside if each.input in by_input else 0)
        by_input[each.input] = RangeCounts(each.input, each.low, each.high, outside)
    return [by_input[name] for name in sorted(by_input)]


def _when(event: Mapping[str, Any]) -> int:
    return int(event["when_ms"])
