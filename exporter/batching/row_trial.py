"""The trial that shows whether rows depend on each other: each one alone, and in batches with others.

Two things are kept apart. What is in the other rows must not matter at all: in batches that differ in nothing but that,
a row's answers are the same. How many rows there are, and which place a row has, decides which kernels run and in what
order they sum, and some models make much of the last bits: that difference may be a little larger.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from demi.bundles.manifest import BatchProof
from demi.errors import DemiError
from demi.exporter.batching.trial_rows import Row, join_rows
from demi.runtime.base import Session
from demi.tensors import Array, Feeds

SAME = 1e-5
"""Relative L2 within which an answer is the same, whatever the other rows hold."""

SAME_MADE = 1e-3
"""The same for rows that were made up, on which a model may be at the edge of what FP32 can do."""

ALIKE = 1e-2
"""Relative L2 within which a row's answers alone and in a batch are the same but for the kernels that ran."""

FLOOR = 0.01
"""Answers this much smaller than others of the output are compared on the scale of the others."""

LARGEST_RUN_S = 1.0
"""About how long the largest batch may take."""

SLOW_S = 0.05
"""A model that takes longer for a row is tried in few runs."""

LARGEST_RUN_ELEMENTS = 1 << 24
"""How many elements the inputs and outputs of the largest batch may have."""

ROWS = 5
"""How many different rows are tried: two of the samples, and three that are made."""


class DependentError(Exception):
    """Rows of this model cannot be put together; the text says why."""


@dataclass(frozen=True, slots=True)
class Alone:
    """A row with its answers where nothing else is in the batch."""

    row: Row
    answers: Feeds


@dataclass(slots=True)
class Trial:
    """What batches have shown so far of rows whose answers alone are known."""

    alone: Sequence[Alone]
    scales: dict[str, float]
    """By output, the least length that differences are measured by."""
    influence: float = 0.0
    """The largest difference that other rows have made."""
    shift: float = 0.0
    """The largest difference of a sample's answers from those alone, and of which output."""
    shifted: str = ""
    seen: dict[tuple[str, int, int, int], Array] = field(default_factory=dict)
    """The answers to a row by output, size of the batch, place and row."""

    def add(self, batch: Sequence[int], answers: Feeds) -> None:
        """Look at the answers to a batch of these rows; DependentError where one shows what is in the others."""
        check_count(answers, len(batch))
        for name, values in answers.items():
            for place, at in enumerate(batch):
                self._look(name, (len(batch), place, at), values[place : place + 1])

    def _look(self, name: str, where: tuple[int, int, int], got: Array) -> None:
        size, _, at = where
        each, scale = self.alone[at], self.scales.get(name, 0.0)
        want = each.answers[name]
        if want.shape != got.shape:
            raise DependentError(
                f"`{name}` has another shape beside other rows: {list(want.shape)} alone, {list(got.shape)} of {size}"
            )
        if not each.row.made and (found := difference(want, got, scale)) > self.shift:
            self.shift, self.shifted = found, name
        before = self.seen.setdefault((name, *where), got)
        if before is got or (each.row.made and not _is_finite(before)):
            return
        found = difference(before, got, scale)
        if found > (SAME_MADE if each.row.made else SAME):
            raise DependentError(
                f"`{name}` depends on the other rows of a batch: with others among {size}, "
                f"a row's answer is another{_by(found)}"
            )
        self.influence = max(self.influence, found)


def prove(session: Session, rows: Sequence[Row], max_size: int) -> BatchProof:
    """The proof that each of the rows gives the same alone and among the others; DependentError where it does not."""
    alone, seconds = _run_alone(session, rows)
    if len(alone) < 2:
        raise DependentError("the samples hold no two rows that differ, and no other is known to be valid beside one")
    batches = plan_batches(len(alone), largest_size(alone[0], seconds, max_size), is_slow=seconds > SLOW_S)
    trial = Trial(alone, _scales(alone))
    for batch in batches:
        trial.add(batch, _run_batch(session, [alone[at].row.feeds for at in batch]))
    if trial.shift > ALIKE:
        raise DependentError(
            f"`{trial.shifted}` depends on a row's place in a batch, or on the number of rows: "
            f"it is not what it is alone{_by(trial.shift)}"
        )
    return BatchProof(
        sizes=tuple(sorted({1, *map(len, batches)})),
        rows=len(alone),
        runs=len(alone) + 1 + len(batches),
        difference=trial.shift,
        influence=trial.influence,
    )


def plan_batches(rows: int, largest: int, *, is_slow: bool = False) -> list[list[int]]:
    """Which rows to put together: in pairs, three at a time, and as many as the largest run takes, in mixed order.

    The first row, one of the samples, has each of the others before it and behind it; larger batches come twice, with
    other rows in some of their places. A slow model is tried in four runs.
    """
    pairs = [[0, other] for other in range(rows)] + [[other, 0] for other in range(1, rows)] + [[rows - 1, rows - 1]]
    larger = [[1, rows - 1, 0]] if largest >= 3 else []
    if largest > 3:
        larger.append([int(row) for row in np.random.default_rng(0).permutation(largest) % rows])
    if is_slow:
        pairs, larger = [[0, 0], [0, rows - 1]], larger[-1:]
    return pairs + [twin for batch in larger for twin in (batch, _exchanged(batch, rows))]


def _exchanged(batch: Sequence[int], rows: int) -> list[int]:
    """A batch with two of its rows in each other's places, the two that differ most where there are enough."""
    one, other = (rows - 3, rows - 2) if rows > 3 else (rows - 2, rows - 1) if rows == 3 else (0, 1)
    return [other if row == one else one if row == other and rows > 2 else row for row in batch]


def largest_size(alone: Alone, seconds: float, max_size: int) -> int:
    """The rows of the largest run: as many as the server may join, unless that takes too long or too much memory."""
    elements = sum(array.size for feeds in (alone.row.feeds, alone.answers) for array in feeds.values())
    fits = min(LARGEST_RUN_S / max(seconds, 1e-9), LARGEST_RUN_ELEMENTS / max(elements, 1))
    return max(2, min(max_size, max(ROWS, int(fits))))


def difference(want: Array, got: Array, scale: float) -> float:
    """The length of the difference over that of `want`, or over `scale` where that is more; infinite where other types
    differ at all, and where only one of the two is finite."""
    if want.shape != got.shape:
        return float("inf")
    if want.dtype.kind != "f":
        return 0.0 if np.array_equal(want, got) else float("inf")
    finite = np.isfinite(want)
    if not np.array_equal(want[~finite], got[~finite], equal_nan=True) or not np.isfinite(got[finite]).all():
        return float("inf")
    error = _length(got[finite].astype(np.float64) - want[finite])
    signal = max(_length(want[finite]), scale)
    return error / signal if signal else float("inf" if error else 0)


def check_count(answers: Feeds, rows: int) -> None:
    """Raise DependentError unless every output has as many rows as the inputs."""
    for name, values in answers.items():
        if values.ndim == 0:
            raise DependentError(f"`{name}` is a scalar, which has no rows")
        if len(values) != rows:
            raise DependentError(f"`{name}` has shape {list(values.shape)} for a batch of {rows}: no row for each")


def _run_alone(session: Session, rows: Sequence[Row]) -> tuple[list[Alone], float]:
    """Each row with its own answers, and the seconds of the quickest run; made rows that fail are left out."""
    alone: list[Alone] = []
    seconds = float("inf")
    for row in rows:
        started = time.perf_counter()
        try:
            answers = session.run(row.feeds)
        except DemiError as error:
            if row.made:
                continue
            raise DependentError(f"a single row fails: {_words(error)}") from error
        seconds = min(seconds, time.perf_counter() - started)
        check_count(answers, 1)
        alone.append(Alone(row, answers))
    if alone:
        _check_repeats(session, alone[0])
    return alone, seconds


def _check_repeats(session: Session, first: Alone) -> None:
    """Raise DependentError where the same row is not answered the same twice: such a model shows nothing."""
    for name, values in session.run(first.row.feeds).items():
        if difference(first.answers[name], values, 0.0) > SAME:
            raise DependentError(f"`{name}` differs from run to run on the same input: it is random, or keeps state")


def _run_batch(session: Session, rows: Sequence[Feeds]) -> Feeds:
    try:
        return session.run(join_rows(rows))
    except DemiError as error:
        raise DependentError(f"a batch of {len(rows)} rows fails: {_words(error)}") from error


def _scales(alone: Sequence[Alone]) -> dict[str, float]:
    """By output, the least length that answers are measured by: a part of the mean length over the samples' rows."""
    answers = [each.answers for each in alone if not each.row.made]
    return {
        name: FLOOR * float(np.mean([_length(found[name][np.isfinite(found[name])]) for found in answers]))
        for name, values in answers[0].items()
        if values.dtype.kind == "f"
    }


def _length(values: Array) -> float:
    return float(np.linalg.norm(values.astype(np.float64)))


def _by(found: float) -> str:
    return f", by {found:.2g} relative L2" if np.isfinite(found) else ""


def _words(error: DemiError) -> str:
    """What a runtime says, without the places in its own source."""
    return re.sub(r"/\S+\.(?:cc|h):\d+ .*? was false\. ", "", error.message)


def _is_finite(answer: Array) -> bool:
    """Whether the answer to a made row says anything: NaN and infinities come about in more ways than one."""
    return answer.dtype.kind != "f" or bool(np.isfinite(answer).all())
