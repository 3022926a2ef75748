"""SIGTERM as an exception, so that `finally` and `with` clean up as they do after Ctrl-C."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from demi.processes import recorder


class TerminatedError(BaseException):
    """The process received SIGTERM."""


@contextlib.contextmanager
def raising_on_sigterm() -> Iterator[None]:
    """Raise TerminatedError in the block when SIGTERM arrives; outside the main thread, change nothing.

    In a supervised process Ctrl-C arrives twice, from the terminal and from the supervisor: it counts once.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    supervised = recorder.is_watched()
    errors: dict[int, type[BaseException]] = {signal.SIGTERM: TerminatedError}
    if supervised and signal.getsignal(signal.SIGINT) == signal.default_int_handler:
        errors[signal.SIGINT] = KeyboardInterrupt

    def end(number: int, frame: FrameType | None) -> None:
        for each in errors:
            signal.signal(each, signal.SIG_IGN)  # a second signal must not interrupt the cleaning up
        raise errors[number]

    before = {number: signal.signal(number, end) for number in errors}
    try:
        yield
    finally:
        for number, handler in before.items():
            if not (supervised and signal.getsignal(number) == signal.SIG_IGN):
                signal.signal(number, handler)
