"""Trial of the independence of rows: each row alone, and in batches with others.

Two differences have separate limits. The contents of other rows must not matter at all: in batches that differ only in
those, a row's outputs are equal. The number of rows and a row's place decide which kernels run and in what order they
sum, and some models amplify the last bits: that difference may be a little larger.
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
"""Relative L2 within which a row's outputs count as equal whatever the other rows hold."""

SAME_MADE = 1e-3
"""`SAME` for synthetic rows, on which a model may be at the edge of FP32's precision."""

ALIKE = 1e-2
"""Relative L2 within which a row's outputs alone and in a batch may differ because other kernels ran."""

FLOOR = 0.01
"""Outputs of a row below this share of the mean norm over the rows are compared on that scale."""

LARGEST_RUN_S = 0.5
"""Approximate limit on the time of the largest batch, in seconds."""

SLOW_S = 0.05
"""A model that takes longer for a row, in seconds, is tried in few runs."""

LARGEST_RUN_ELEMENTS = 1 << 24
"""Limit on the elements of the inputs and outputs of the largest batch."""

ROWS = 5
"""Number of different rows in a trial: two of the samples, and three synthetic ones."""


class DependentError(Exception):
    """Rows of this model cannot be joined; the message is the reason."""


@dataclass(frozen=True, slots=True)
class Alone:
    """A row with its outputs when it is alone in the batch."""

    row: Row
    answers: Feeds


@dataclass(slots=True)
class Trial:
    """Differences found so far between rows in batches and the same rows alone."""

    alone: Sequence[Alone]
    scales: dict[str, float]
    """By output, the least norm that differences are divided by."""
    influence: float = 0.0
    """The largest difference caused by the contents of other rows."""
    shift: float = 0.0
    """The largest difference between a sample's outputs in a batch and alone; `shifted` names the output."""
    shifted: str = ""
    seen: dict[tuple[str, int, int, int], Array] = field(default_factory=dict)
    """A row's values by output, batch size, place and row."""

    def add(self, batch: Sequence[int], answers: Feeds) -> None:
        """Compare the outputs of a batch of these rows; raise DependentError if one depends on the other rows."""
        check_count(answers, len(batch))
        for name, values in answers.items():
            for place, at in enumerate(batch):
                self._compare_row(name, (len(batch), place, at), values[place : place + 1])

    def _compare_row(self, name: str, where: tuple[int, int, int], got: Array) -> None:
        size, _, at = where
        each, scale = self.alone[at], self.scales.get(name, 0.0)
        want = each.answers[name]
        if want.shape != got.shape:
            raise DependentError(
                f"`{name}` has another shape beside other rows: {list(want.shape)} alone, "
                f"{list(got.shape)} in a batch of {size}"
            )
        if not each.row.synthetic and (found := difference(want, got, scale)) > self.shift:
            self.shift, self.shifted = found, name
        before = self.seen.setdefault((name, *where), got)
        if before is got or (each.row.synthetic and not _is_finite(before)):
            return
        found = difference(before, got, scale)
        if found > (SAME_MADE if each.row.synthetic else SAME):
            raise DependentError(
                f"`{name}` depends on the other rows of a batch: in a batch of {size} with other rows, "
                f"a row's output differs{_amount(found)}"
            )
        self.influence = max(self.influence, found)


def prove(session: Session, rows: Sequence[Row], max_size: int) -> BatchProof:
    """Prove that each of the rows has the same outputs alone and beside the others; raise DependentError otherwise."""
    alone, seconds = _run_alone(session, rows)
    if len(alone) < 2:
        raise DependentError(
            "the samples hold no two rows that differ, and no valid row could be made from the only one"
        )
    batches = plan_batches(len(alone), largest_size(alone[0], seconds, max_size), is_slow=seconds > SLOW_S)
    trial = Trial(alone, _scales(alone))
    for batch in batches:
        trial.add(batch, _run_batch(session, [alone[at].row.feeds for at in batch]))
    if trial.shift > ALIKE:
        raise DependentError(
            f"`{trial.shifted}` depends on a row's place in a batch, or on the number of rows: "
            f"it differs from that of the row alone{_amount(trial.shift)}"
        )
    return BatchProof(
        sizes=tuple(sorted({1, *map(len, batches)})),
        rows=len(alone),
        runs=len(alone) + 1 + len(batches),
        difference=trial.shift,
        influence=trial.influence,
    )


def plan_batches(rows: int, largest: int, *, is_slow: bool = False) -> list[list[int]]:
    """Return the batches to run, as row numbers: pairs, three rows, and as many as the largest run takes, shuffled.

    The first row, one of the samples, is paired with each of the others before and behind it; larger batches come
    twice, with two rows exchanged. A slow model is tried in four batches.
    """
    pairs = [[0, other] for other in range(rows)] + [[other, 0] for other in range(1, rows)] + [[rows - 1, rows - 1]]
    larger = [[1, rows - 1, 0]] if largest >= 3 else []
    if largest > 3:
        larger.append([int(row) for row in np.random.default_rng(0).permutation(largest) % rows])
    if is_slow:
        pairs, larger = [[0, 0], [0, rows - 1]], larger[-1:]
    return pairs + [twin for batch in larger for twin in (batch, _exchanged_rows(batch, rows))]


def _exchanged_rows(batch: Sequence[int], rows: int) -> list[int]:
    """Return a batch with two of its rows exchanged, the two that differ most if there are enough."""
    one, other = (rows - 3, rows - 2) if rows > 3 else (rows - 2, rows - 1) if rows == 3 else (0, 1)
    return [other if row == one else one if row == other and rows > 2 else row for row in batch]


def largest_size(alone: Alone, seconds: float, max_size: int) -> int:
    """Return the size of the largest batch: what the server may join, within the limits on time and elements."""
    elements = sum(array.size for feeds in (alone.row.feeds, alone.answers) for array in feeds.values())
    fits = min(LARGEST_RUN_S / max(seconds, 1e-9), LARGEST_RUN_ELEMENTS / max(elements, 1))
    return max(2, min(max_size, max(ROWS, int(fits))))


def difference(want: Array, got: Array, scale: float) -> float:
    """Return the norm of the difference divided by that of `want`, or by `scale` if that is larger.

    It is infinite if shapes differ, if types other than float differ at all, or if only one side is finite.
    """
    if want.shape != got.shape:
        return float("inf")
    if want.dtype.kind != "f":
        return 0.0 if np.array_equal(want, got) else float("inf")
    finite = np.isfinite(want)
    if not np.array_equal(want[~finite], got[~finite], equal_nan=True) or not np.isfinite(got[finite]).all():
        return float("inf")
    error = _norm(got[finite].astype(np.float64) - want[finite])
    signal = max(_norm(want[finite]), scale)
    return error / signal if signal else float("inf" if error else 0)


def check_count(answers: Feeds, rows: int) -> None:
    """Raise DependentError unless every output has as many rows as the inputs."""
    for name, values in answers.items():
        if values.ndim == 0:
            raise DependentError(f"`{name}` is a scalar, which has no rows")
        if len(values) != rows:
            raise DependentError(f"`{name}` has shape {list(values.shape)} for a batch of {rows}: not one row for each")


def _run_alone(session: Session, rows: Sequence[Row]) -> tuple[list[Alone], float]:
    """Return each row with its outputs alone, and the seconds of the quickest run, without synthetic rows that fail."""
    alone: list[Alone] = []
    seconds = float("inf")
    for row in rows:
        started = time.perf_counter()
        try:
            answers = session.run(row.feeds)
        except DemiError as error:
            if row.synthetic:
                continue
            raise DependentError(f"a single row fails: {_message(error)}") from error
        seconds = min(seconds, time.perf_counter() - started)
        check_count(answers, 1)
        alone.append(Alone(row, answers))
    if alone:
        _check_repeats(session, alone[0])
    return alone, seconds


def _check_repeats(session: Session, first: Alone) -> None:
    """Raise DependentError if two runs of the same row differ: then the trial proves nothing."""
    for name, values in session.run(first.row.feeds).items():
        if difference(first.answers[name], values, 0.0) > SAME:
            raise DependentError(
                f"`{name}` differs from run to run on the same input: it is random or depends on state"
            )


def _run_batch(session: Session, rows: Sequence[Feeds]) -> Feeds:
    try:
        return session.run(join_rows(rows))
    except DemiError as error:
        raise DependentError(f"a batch of {len(rows)} rows fails: {_message(error)}") from error


def _scales(alone: Sequence[Alone]) -> dict[str, float]:
    """Return, by output, the least norm to divide by: `FLOOR` of the mean norm over the samples' rows."""
    answers = [each.answers for each in alone if not each.row.synthetic]
    return {
        name: FLOOR * float(np.mean([_norm(found[name][np.isfinite(found[name])]) for found in answers]))
        for name, values in answers[0].items()
        if values.dtype.kind == "f"
    }


def _norm(values: Array) -> float:
    return float(np.linalg.norm(values.astype(np.float64)))


def _amount(found: float) -> str:
    return f", by {found:.2g} relative L2" if np.isfinite(found) else ""


def _message(error: DemiError) -> str:
    """Return a runtime's message without the lines of its own source code."""
    return re.sub(r"/\S+\.(?:cc|h):\d+ .*? was false\. ", "", error.message)


def _is_finite(answer: Array) -> bool:
    """Return True if a synthetic row's output can be compared: NaN and infinity may have several causes."""
    return answer.dtype.kind != "f" or bool(np.isfinite(answer).all())
