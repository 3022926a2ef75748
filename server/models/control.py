"""Models that come and go while the server runs: loaded, swapped and unloaded without dropping a request."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable
from pathlib import Path

from demi.errors import BundleError, DemiError
from demi.proofs.record import FOLDER
from demi.server.errors import ForbiddenError, NotFoundError, RequestError, full_text
from demi.server.models.loading import load_bundle
from demi.server.models.model import Model, State
from demi.server.models.repository import Found, Load, Repository, find_bundles, load_one, name_of
from demi.server.settings import ServeSettings
from demi.server.threads import in_thread

log = logging.getLogger("demi.server")

Fingerprint = tuple[tuple[str, int, int], ...]
"""Names, sizes and times of change of a bundle's files."""


class Control:
    """Changes a repository by what lies on disk, one change at a time. Belongs to the event loop's thread.

    A bundle is loaded beside the one it replaces and takes its place once it is warm; the other answers what it has
    admitted and ends. A bundle that fails to load leaves the one that serves where it is.
    """

    def __init__(self, repository: Repository, path: Path, settings: ServeSettings, load: Load = load_bundle) -> None:
        self._repository = repository
        self._path = path
        self._settings = settings
        self._load = load
        self._lock = asyncio.Lock()
        self._seen = {found.path: fingerprint(found) for found in _find(path)}

    async def load(self, name: str) -> None:
        """Serve what is on disk under a name: new versions and changed ones, and no longer those that are gone.

        Raises NotFoundError where there is no such bundle, and the error of the first version that fails to load.
        """
        async with self._lock:
            bundles = [found for found in await in_thread(lambda: _find(self._path)) if name_of(found) == name]
            if not bundles:
                raise NotFoundError(f"there is no bundle of a model `{name}` in the repository")
            errors: list[DemiError] = []
            for found in bundles:
                if self._is_new(found) or not self._serves(found):
                    await self._put(found, errors)
            await self._retire_missing(bundles, name)
            if errors:
                raise errors[0]

    async def unload(self, name: str) -> None:
        """Take every version of a model out of service, once it has answered what it has admitted.

        Raises NotFoundError for a model that is not there.
        """
        async with self._lock:
            versions = self._repository.versions(name)
            if not versions:
                raise NotFoundError(f"unknown model `{name}`", hint="GET / lists the models")
            models = [self._repository.find(name, version) for version in versions]
            await asyncio.gather(*(self._retire(model) for model in models))

    async def sync(self) -> None:
        """Follow the disk: load what is new or has changed, retire what is gone; failures are logged and kept."""
        async with self._lock:
            bundles = await in_thread(lambda: _find(self._path))
            if self._repository.draining or not bundles:
                return
            for found in bundles:
                if self._is_new(found):
                    await self._put(found, [])
            await self._retire_missing(bundles)

    def _is_new(self, found: Found) -> bool:
        return self._seen.get(found.path) != fingerprint(found)

    def _serves(self, found: Found) -> bool:
        return any(model.path == found.path and model.state is State.READY for model in self._repository)

    async def _put(self, found: Found, errors: list[DemiError]) -> None:
        """Load one bundle and let it take its place, if it can be served or nothing is served there."""
        self._seen[found.path] = fingerprint(found)
        model = await in_thread(lambda: load_one(found, self._settings, self._load, errors))
        if self._repository.draining:
            model.close()
            return
        before = self._repository.get(model.name, model.version)
        if before and before.state is State.READY and model.state is not State.READY:
            return
        self._repository.put(model)
        if before:
            await self._retire(before)

    async def _retire_missing(self, bundles: list[Found], name: str | None = None) -> None:
        paths = {found.path for found in bundles}
        for model in list(self._repository):
            if model.path not in paths and name in (None, model.name):
                self._seen = {path: seen for path, seen in self._seen.items() if path != model.path}
                await self._retire(model)
                self._repository.remove(model)

    async def _retire(self, model: Model) -> None:
        """Let a model answer what it has admitted, for as long as a stopping server would, and end it."""
        model.drain()
        stop = time.monotonic() + self._settings.drain_s
        while model.in_flight and time.monotonic() < stop:
            await asyncio.sleep(0.005)
        model.retire()
        self._repository.forget(model)
        log.info("model unloaded: name=%s version=%s", model.name, model.version)


def fingerprint(found: Found) -> Fingerprint:
    """What changes when a bundle's files do, but for proofs, which loading it writes; empty where they cannot be read."""
    try:
        files = sorted(path for path in found.path.rglob("*") if path.is_file() and path.parent.name != FOLDER)
        return tuple((str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files)
    except OSError:
        return ()


def _find(path: Path) -> list[Found]:
    try:
        return find_bundles(path)
    except (BundleError, OSError) as error:
        log.warning("the repository cannot be read: %s", full_text(error))
        return []


def allowed(control: Control | None) -> Control:
    """The control, where the settings give clients one; ForbiddenError otherwise."""
    if control is None:
        raise ForbiddenError(
            "this server does not let clients load and unload models", hint="start it with --allow-model-control"
        )
    return control


def check_control_parameters(parameters: Iterable[str]) -> None:
    """Raise RequestError where a request to load or unload a model brings one along."""
    if offered := [name for name in parameters if name == "config" or name.startswith("file:")]:
        raise RequestError(
            f"parameter `{offered[0]}` would bring a model or its configuration along, which this server refuses",
            hint="put the bundle into the server's folder and load it by its name",
        )
