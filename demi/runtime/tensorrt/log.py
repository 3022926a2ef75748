"""TensorRT's log, where its reasons are, and its plugins, which write to the same."""

from __future__ import annotations

import collections
import functools
import logging
from typing import Any

log = logging.getLogger("demi.runtime")


@functools.cache
def logger_of(trt: Any) -> Any:
    """The one logger of this process: hands lines to Python's logging, and keeps the last errors for `why`.

    TensorRT has one log for the whole process, that of whoever came first, and goes on writing to it; so all share one,
    which is never gone. It answers None or False where it fails, and the reason is in this log alone.
    """
    severity = trt.ILogger.Severity

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.last_errors: collections.deque[str] = collections.deque(maxlen=3)

        def log(self, level: Any, message: str) -> None:
            if level in (severity.INTERNAL_ERROR, severity.ERROR):
                self.last_errors.append(message)
                log.error("TensorRT: %s", message)
            elif level == severity.WARNING:
                log.info("TensorRT: %s", message)  # it warns a lot, of nothing that a user could change

    return Logger()


@functools.cache
def register_plugins(trt: Any) -> None:
    """Make TensorRT's own plugins known, which some ONNX operators (ScatterElements, RoiAlign) become; once is enough.

    They come with TensorRT; none is ever loaded from a file that lies beside a model.
    """
    trt.init_libnvinfer_plugins(logger_of(trt), "")


def why(logger: Any) -> str:
    """What TensorRT said last of what went wrong; told once."""
    said = "; ".join(logger.last_errors)
    logger.last_errors.clear()
    return said or "TensorRT gave no reason"
