"""Trial loads: each bundle is loaded in a process of its own first, so that a model that crashes cannot end the server.

A trial load repeats the real one: the same bundle, devices, settings and functions. References are tried when they are
first needed.
"""

from __future__ import annotations

import contextlib
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

from demi.bundles.bundle import open_bundle
from demi.errors import DemiError
from demi.processes.trial_process import TrialProcess
from demi.runtime.onnxruntime.session import empty_feeds
from demi.server.models.cpu_choice import prove_here, proved_before
from demi.server.models.loading import Loaded, Part, load_bundle
from demi.server.models.warm_up import warm_up
from demi.server.settings import ServeSettings

WORK = "demi.server.models.trial_loads:trial_load"


def trial_load(path: Path, settings: ServeSettings, part: Part) -> None:
    """Load one part of a bundle and run it once. Called in a process that may crash doing so."""
    bundle = open_bundle(path, verify=False)
    bundle.check_models()
    loaded = load_bundle(path, settings, verify=False)
    session = loaded.session
    if part == "reference" and loaded.open_reference is not None:
        session = loaded.open_reference()
        warm_up(session, bundle)
    if not bundle.has_golden:
        session.run(empty_feeds(session.inputs))


def load_after_trial(path: Path, settings: ServeSettings) -> Loaded:
    """Load the bundle at `path` after a trial load. Raise CrashError if the trial load crashes or hangs."""
    return load_bundle(path, settings, trial=_try_alone, prove=prove_here if settings.trial else proved_before)


def _try_alone(path: Path, settings: ServeSettings, part: Part) -> None:
    """Try one part in a process that is started for it and ended afterwards."""
    if settings.trial:
        with _trial_process(settings) as process:
            process.call(path, settings, part)


def _trial_process(settings: ServeSettings) -> TrialProcess:
    return TrialProcess(WORK, settings.load_timeout_s, "--load-timeout")


class TrialLoads:
    """Trial loads of many bundles at startup, in one process, each ahead of the bundle's real load.

    Owns the process, and the thread that waits for it, until closed.
    """

    def __init__(self, settings: ServeSettings) -> None:
        self._settings = settings
        self._process = _trial_process(settings)
        self._ahead: dict[Path, Future[None]] = {}
        self._thread = ThreadPoolExecutor(1, "demi-trial-loads")
        places = {*settings.places, settings.reference_place}
        self._runs_ahead = settings.trial and all(device.kind == "cpu" for device in places)
        if self._runs_ahead:
            self._process.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def begin(self, path: Path) -> None:
        """Start trying the bundles at or below a folder, in the order in which they will be loaded.

        On a GPU nothing is tried ahead: each bundle has a process of its own, which frees the device before the load.
        """
        from demi.server.models.repository import find_bundles

        if self._runs_ahead:
            with contextlib.suppress(DemiError):  # loading raises it again
                for found in find_bundles(path):
                    self._ahead[found.path] = self._thread.submit(
                        self._process.call, found.path, self._settings, "model"
                    )

    def load(self, path: Path, settings: ServeSettings) -> Loaded:
        """Load the bundle at `path` after its trial load. Raise CrashError if the trial load crashed or hung."""
        return load_bundle(path, settings, trial=self._trial, prove=prove_here if settings.trial else proved_before)

    def close(self) -> None:
        """End the process and the thread."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        self._process.close()

    def _trial(self, path: Path, settings: ServeSettings, part: Part) -> None:
        ahead = self._ahead.get(path) if part == "model" else None
        return ahead.result() if ahead is not None else _try_alone(path, settings, part)
