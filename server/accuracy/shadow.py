"""Sampled requests run once more in the other precision, when the device has nothing else to do."""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from demi.accuracy.budget import Budget
from demi.accuracy.compare import compare
from demi.accuracy.varying import STEADY, Varying
from demi.errors import DemiError
from demi.server.accuracy.guard import fingerprint, now_ms
from demi.server.accuracy.window import Compared
from demi.server.errors import full_text
from demi.server.protocol.answer import Answer
from demi.server.protocol.float_widths import to_readable
from demi.server.protocol.signature import Signature
from demi.server.scheduling.activity import Activity
from demi.tensors import Feeds

log = logging.getLogger("demi.server")

PENDING = 4
"""How many samples may wait for the device: more would only be older, and hold memory."""

PATIENCE_S = 2.0
"""How long a sample waits for the device to be idle before it is dropped."""

Infer = Callable[[Feeds, list[str]], Awaitable[Answer]]


@dataclass(frozen=True, slots=True)
class Sample:
    """A request that has been answered, with what it was answered."""

    request_id: str
    feeds: Feeds
    answer: Answer


class Shadow:
    """Draws requests, runs them in the other precision and hands on how far apart the answers are.

    Belongs to the event loop's thread. A sample runs only while no live request waits or runs on its device; one that
    finds no such moment is dropped and counted. Outputs that are `varying` are not compared. `infer_other` runs a sample in the precision it was not answered in.
    """

    def __init__(
        self,
        share: float,
        signature: Signature,
        budget: Budget,
        activity: Activity,
        infer_other: Callable[[Sample], Awaitable[Answer]],
        tell: Callable[[Compared], None],
        draw: Callable[[], float] = random.random,
        varying: Varying = STEADY,
    ) -> None:
        self.share = share
        self.samples = 0
        self.dropped = {"busy": 0, "queue": 0, "failed": 0}
        self._signature = signature
        self._budget = budget
        self._activity = activity
        self._infer_other = infer_other
        self._tell = tell
        self._draw = draw
        self._varying = varying
        self._pending: deque[Sample] = deque()
        self._task: asyncio.Task[None] | None = None

    def offer(self, request_id: str, feeds: Feeds, answer: Answer) -> None:
        """Take an answered request as a sample, or not, by the share that is wanted."""
        if not self.share or self._draw() >= self.share:
            return
        if len(self._pending) >= PENDING:
            self.dropped["queue"] += 1
            return
        self._pending.append(Sample(request_id, feeds, answer))
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._work())

    def close(self) -> None:
        """Take no more samples, and leave those that wait."""
        self.share = 0.0
        self._pending.clear()
        if self._task:
            self._task.cancel()

    async def _work(self) -> None:
        """Run the samples that wait, one after the other."""
        while self._pending:
            sample = self._pending.popleft()
            if not await self._activity.idle(PATIENCE_S):
                self.dropped["busy"] += 1
                continue
            try:
                self._tell(await self._compare(sample))
                self.samples += 1
            except DemiError as error:
                self.dropped["failed"] += 1
                log.warning("a sampled request could not be compared: %s", full_text(error))
            except Exception as error:
                self.dropped["failed"] += 1
                log.error("comparing a sampled request failed", exc_info=error)

    async def _compare(self, sample: Sample) -> Compared:
        other = await self._infer_other(sample)
        half, fp32 = (other, sample.answer) if sample.answer.precision == "fp32" else (sample.answer, other)

        def work() -> Compared:
            return compare_answers(sample, self._numbers(half.outputs), self._numbers(fp32.outputs), self._budget)

        return await asyncio.get_running_loop().run_in_executor(None, work)

    def _numbers(self, outputs: Feeds) -> Feeds:
        judged = self._varying.judged(outputs, live=True)  # noise is no drift
        return {name: to_readable(values, self._signature.output(name).dtype) for name, values in judged.items()}


def compare_answers(sample: Sample, half: Feeds, fp32: Feeds, budget: Budget) -> Compared:
    """How far a request's half answer is from its FP32 answer; outputs of which nothing can be compared are left out.

    A request of no rows, or one that FP32 itself answers with NaN, would count as a perfect one.
    """
    outputs = tuple(diff for diff in compare([fp32], [half], budget).outputs if diff.elements > diff.unmeasured)
    return Compared(sample.request_id, fingerprint(sample.feeds), now_ms(), outputs)
