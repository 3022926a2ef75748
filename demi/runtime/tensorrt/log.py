"""TensorRT's log, which holds the reasons of its failures, and its plugins."""

from __future__ import annotations

import collections
import functools
import logging
from typing import Any

log = logging.getLogger("demi.runtime")


@functools.cache
def logger_of(trt: Any) -> Any:
    """Return the logger of this process, which forwards to Python's logging and keeps the last errors for `why`.

    TensorRT uses the first logger that it is given for the whole process, so all callers share one that is never freed.
    Where TensorRT fails, it returns None or False, and the reason is only in this log.
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
                log.info("TensorRT: %s", message)  # its many warnings are about things that users cannot change

    return Logger()


@functools.cache
def register_plugins(trt: Any) -> None:
    """Register TensorRT's own plugins, which implement some ONNX operators (ScatterElements, RoiAlign), once.

    They are part of TensorRT. Plugins are never loaded from files beside a model.
    """
    trt.init_libnvinfer_plugins(logger_of(trt), "")


def why(logger: Any) -> str:
    """Return the last errors in TensorRT's log, and clear them."""
    said = "; ".join(logger.last_errors)
    logger.last_errors.clear()
    return said or "TensorRT gave no reason"
