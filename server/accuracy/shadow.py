"""Shadow runs: sampled requests run once more in the other precision while the device is idle."""

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
from demi.server.accuracy.fingerprint import fingerprint
from demi.server.accuracy.window import ShadowSample
from demi.server.clock import now_ms
from demi.server.errors import full_text
from demi.server.protocol.answer import Answer
from demi.server.protocol.float_widths import to_readable
from demi.server.protocol.signature import Signature
from demi.server.scheduling.activity import Activity
from demi.tensors import Feeds

log = logging.getLogger("demi.server")

MAX_PENDING = 4
"""Requests that may wait for an idle device; a longer queue would only hold memory and older requests."""

IDLE_TIMEOUT_S = 2.0
"""Time that a request waits for an idle device before it is dropped, in seconds."""


@dataclass(frozen=True, slots=True)
class SampledRequest:
    """An answered request that was drawn as a sample."""

    request_id: str
    feeds: Feeds
    answer: Answer


class Shadow:
    """Draws requests, runs them in the other precision and reports the error. Used on the event loop's thread only.

    A sampled request runs only while no live request waits or runs on its device; after `IDLE_TIMEOUT_S` without such
    a moment it is dropped and counted. `infer_other` runs it in the precision that it was not answered in, and
    `report` takes the comparison. Outputs that are `varying` are not compared.
    """

    def __init__(
        self,
        share: float,
        signature: Signature,
        budget: Budget,
        activity: Activity,
        infer_other: Callable[[SampledRequest], Awaitable[Answer]],
        report: Callable[[ShadowSample], None],
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
        self._report = report
        self._draw = draw
        self._varying = varying
        self._pending: deque[SampledRequest] = deque()
        self._task: asyncio.Task[None] | None = None

    def offer(self, request_id: str, feeds: Feeds, answer: Answer) -> None:
        """Sample an answered request with probability `share`; drop and count it if too many are pending."""
        if not self.share or self._draw() >= self.share:
            return
        if len(self._pending) >= MAX_PENDING:
            self.dropped["queue"] += 1
            return
        self._pending.append(SampledRequest(request_id, feeds, answer))
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._work())

    def close(self) -> None:
        """Stop sampling and drop the pending requests."""
        self.share = 0.0
        self._pending.clear()
        if self._task:
            self._task.cancel()

    async def _work(self) -> None:
        """Run the pending requests one after the other."""
        while self._pending:
            sampled = self._pending.popleft()
            if not await self._activity.idle(IDLE_TIMEOUT_S):
                self.dropped["busy"] += 1
                continue
            try:
                self._report(await self._compare(sampled))
                self.samples += 1
            except DemiError as error:
                self.dropped["failed"] += 1
                log.warning("a sampled request could not be compared: %s", full_text(error))
            except Exception as error:
                self.dropped["failed"] += 1
                log.error("comparing a sampled request failed", exc_info=error)

    async def _compare(self, sampled: SampledRequest) -> ShadowSample:
        other = await self._infer_other(sampled)
        half, fp32 = (other, sampled.answer) if sampled.answer.precision == "fp32" else (sampled.answer, other)

        def work() -> ShadowSample:
            return compare_answers(
                sampled, self._comparable(half.outputs), self._comparable(fp32.outputs), self._budget
            )

        return await asyncio.get_running_loop().run_in_executor(None, work)

    def _comparable(self, outputs: Feeds) -> Feeds:
        judged = self._varying.comparable(outputs, live=True)  # random outputs are not drift
        return {name: to_readable(values, self._signature.output(name).dtype) for name, values in judged.items()}


def compare_answers(sampled: SampledRequest, half: Feeds, fp32: Feeds, budget: Budget) -> ShadowSample:
    """Return the error of a request's half answer against its FP32 answer.

    Outputs without a comparable element are left out: a request of no rows, or one that FP32 itself answers with NaN,
    would otherwise count as a perfect one.
    """
    outputs = tuple(diff for diff in compare([fp32], [half], budget).outputs if diff.elements > diff.unmeasured)
    return ShadowSample(sampled.request_id, fingerprint(sampled.feeds), now_ms(), outputs)
