"""Open models in the user's own program: each is tried in another process first, where a crash does no harm.

Commands need no trial, since they are supervised as a whole (`demi.cli.supervisor`), and servers have their own
(`demi.server.models.trial_loads`).
"""

from __future__ import annotations

import atexit
import functools
import os
from pathlib import Path

from demi.processes.crash import native_limit_s
from demi.processes.recorder import is_watched
from demi.processes.trial_process import TrialProcess
from demi.runtime.base import CPU, Device
from demi.runtime.onnxruntime.session import OrtSession, SessionSettings, empty_feeds, open_session
from demi.tensors import Feeds


def open_tried(
    model: Path | bytes, device: Device = CPU, settings: SessionSettings | None = None, *, feeds: Feeds | None = None
) -> OrtSession:
    """Open a session as `open_session` does, after the model was opened and run once in a trial process.

    The trial runs on `feeds`, or on zeros. Raises CrashError when it crashes or hangs, and as `open_session` does.
    """
    if not is_watched():
        _trial_process(os.getpid()).call(model, device, settings, feeds)
    return open_session(model, device, settings)


def try_out(model: Path | bytes, device: Device, settings: SessionSettings | None, feeds: Feeds | None) -> None:
    """Open a model and run it once; called in the trial process."""
    session = open_session(model, device, settings)
    session.run(feeds if feeds is not None else empty_feeds(session.inputs))


@functools.cache
def _trial_process(process: int) -> TrialProcess:
    """Return the trial process of this process, which is reused for all models; a forked child gets its own."""
    trial = TrialProcess("demi.runtime.onnxruntime.first_open:try_out", native_limit_s())
    atexit.register(trial.close)
    return trial
