"""Models that are opened for the first time in the life of somebody else's program: a process of their own goes first.

A command needs none, for it is watched as a whole (`demi.cli.supervisor`), and a server has its own (`demi.server.models.trial_loads`).
"""

from __future__ import annotations

import atexit
import functools
import os
from pathlib import Path

from demi.processes.crash import native_limit_s
from demi.processes.recorder import is_watched
from demi.processes.scout import Scout
from demi.runtime.base import CPU, Device
from demi.runtime.onnxruntime.session import OrtSession, SessionSettings, empty_feeds, open_session
from demi.tensors import Feeds


def open_tried(
    model: Path | bytes, device: Device = CPU, settings: SessionSettings | None = None, *, feeds: Feeds | None = None
) -> OrtSession:
    """A session, as `open_session` makes it, for a model that has been opened and run once where its death does no harm.

    It is run on `feeds`, else on zeros. Raises CrashError when that process dies, and what `open_session` raises.
    """
    if not is_watched():
        _scout(os.getpid()).go(model, device, settings, feeds)
    return open_session(model, device, settings)


def try_out(model: Path | bytes, device: Device, settings: SessionSettings | None, feeds: Feeds | None) -> None:
    """Open a model and run it, for a process that may die of it."""
    session = open_session(model, device, settings)
    session.run(feeds if feeds is not None else empty_feeds(session.inputs))


@functools.cache
def _scout(process: int) -> Scout:
    """The process that goes first for this one: it stays for the next model, and ends with this process."""
    scout = Scout("demi.runtime.onnxruntime.first_open:try_out", native_limit_s())
    atexit.register(scout.close)
    return scout
