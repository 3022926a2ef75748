"""Bundles are tried out in a process of their own before the server opens them: a model that dies takes no other along.

What is tried is what follows here: the same bundle, device and settings, through the same functions. References are tried
when they are first needed.
"""

from __future__ import annotations

import contextlib
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

from demi.bundles.bundle import open_bundle
from demi.errors import DemiError
from demi.processes.scout import Scout
from demi.runtime.onnxruntime.session import empty_feeds
from demi.server.models.cpu_choice import prove_here, proved_before
from demi.server.models.loading import Loaded, Part, load_bundle, warm_up
from demi.server.settings import ServeSettings

WORK = "demi.server.models.trial:try_out"


def try_out(path: Path, settings: ServeSettings, part: Part) -> None:
    """Load one part of a bundle and let it answer once; for a process that may die of it."""
    bundle = open_bundle(path, verify=False)
    bundle.check_models()
    loaded = load_bundle(path, settings, verify=False)
    session = loaded.session
    if part == "reference" and loaded.open_reference is not None:
        session = loaded.open_reference()
        warm_up(session, bundle)
    if not bundle.has_golden:
        session.run(empty_feeds(session.inputs))


def load_tried(path: Path, settings: ServeSettings) -> Loaded:
    """The bundle at `path`, loaded here once that has gone well in another process; CrashError where it has not."""
    return load_bundle(path, settings, trial=_try_alone, prove=prove_here if settings.trial else proved_before)


def _try_alone(path: Path, settings: ServeSettings, part: Part) -> None:
    """One trial, in a process that is there for nothing else."""
    if settings.trial:
        with _scout(settings) as scout:
            scout.go(path, settings, part)


def _scout(settings: ServeSettings) -> Scout:
    return Scout(WORK, settings.load_timeout_s, "--load-timeout")


class Trials:
    """Trials of many bundles, in one process, while the server starts: each ahead of the bundle's loading.

    Owns the process, and the thread that waits for it, until it is closed.
    """

    def __init__(self, settings: ServeSettings) -> None:
        self._settings = settings
        self._scout = _scout(settings)
        self._ahead: dict[Path, Future[None]] = {}
        self._thread = ThreadPoolExecutor(1, "demi-trials")
        places = {*settings.places, settings.reference_place}
        self._ahead_of_time = settings.trial and all(device.kind == "cpu" for device in places)
        if self._ahead_of_time:
            self._scout.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def begin(self, path: Path) -> None:
        """Try the bundles at or below a folder, in the order in which they will be loaded.

        On a GPU each has a process of its own, which lets go of the device before the bundle is loaded.
        """
        from demi.server.models.repository import find_bundles

        if self._ahead_of_time:
            with contextlib.suppress(DemiError):  # which loading will say as well
                for found in find_bundles(path):
                    self._ahead[found.path] = self._thread.submit(self._scout.go, found.path, self._settings, "model")

    def load(self, path: Path, settings: ServeSettings) -> Loaded:
        """The bundle at `path`, loaded here once its trial has gone well; CrashError where it has not."""
        return load_bundle(path, settings, trial=self._trial, prove=prove_here if settings.trial else proved_before)

    def close(self) -> None:
        """End the process."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        self._scout.close()

    def _trial(self, path: Path, settings: ServeSettings, part: Part) -> None:
        ahead = self._ahead.get(path) if part == "model" else None
        return ahead.result() if ahead is not None else _try_alone(path, settings, part)
