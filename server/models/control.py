"""Model control: load, swap and unload models while the server runs, without dropping a request."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from demi.errors import BundleError, DemiError
from demi.proofs.record import FOLDER
from demi.server.errors import LIST_HINT, ForbiddenError, NotFoundError, RequestError, full_text
from demi.server.models.loading import load_bundle
from demi.server.models.model import Model, State
from demi.server.models.repository import (
    Found,
    Load,
    Repository,
    find_bundles,
    load_one,
    name_of,
    version_of,
)
from demi.server.models.traffic import TrafficControl
from demi.server.settings import ServeSettings
from demi.server.threads import in_thread

log = logging.getLogger("demi.server")

FileStamps = tuple[tuple[str, int, int], ...]
"""Name, size in bytes and modification time in nanoseconds of each file of a bundle."""


class ModelControl(Protocol):
    """Loads and unloads models by name: of this server, or of all servers behind one address."""

    traffic: TrafficControl
    """Changes the rules that choose among a model's versions."""

    async def load(self, name: str, version: str | None = None) -> None:
        """Load the new and changed versions of a model from disk, and unload those that are gone; or load one version.

        Raises NotFoundError if there is no such bundle, and the error of the first version that fails to load.
        """

    async def unload(self, name: str, version: str | None = None) -> None:
        """Unload one version of a model, or all, after their admitted requests are answered.

        Raises NotFoundError for an unknown model or version.
        """


class Control(ModelControl):
    """Updates a repository from disk, one change at a time. Used on the event loop's thread only.

    A bundle is loaded beside the one that it replaces and takes its place once it is warm. The old one answers its
    admitted requests and is then unloaded. If a bundle fails to load, the old one continues to serve.
    """

    def __init__(self, repository: Repository, path: Path, settings: ServeSettings, load: Load = load_bundle) -> None:
        self._repository = repository
        self._path = path
        self._settings = settings
        self._load = load
        self._lock = asyncio.Lock()
        self._seen = {found.path: file_stamps(found) for found in _find(path)}
        self.traffic = TrafficControl(repository, self.load)

    async def load(self, name: str, version: str | None = None) -> None:
        """Load the new and changed versions of a model from disk, and unload those that are gone.

        With a version, only that one is loaded and nothing is unloaded. Raises NotFoundError if there is no such bundle,
        and the error of the first version that fails to load.
        """
        async with self._lock:
            bundles = [found for found in await in_thread(lambda: _find(self._path)) if name_of(found) == name]
            if not bundles:
                raise NotFoundError(f"the repository holds no bundle of a model `{name}`")
            wanted = [found for found in bundles if version in (None, version_of(found))]
            if not wanted:
                known = ", ".join(map(version_of, bundles))
                raise NotFoundError(f"the repository holds no version `{version}` of model `{name}`; it has {known}")
            errors: list[DemiError] = []
            for found in wanted:
                if self._is_new(found) or not self._serves(found):
                    await self._put(found, errors)
            if version is None:
                await self._retire_missing(bundles, name)
            if errors:
                raise errors[0]

    async def unload(self, name: str, version: str | None = None) -> None:
        """Unload one version of a model, or all, after their admitted requests are answered.

        Raises NotFoundError for an unknown model or version.
        """
        async with self._lock:
            models = [self._repository.find(name, each) for each in ([version] if version else self._known(name))]
            await asyncio.gather(*(self._retire(model) for model in models))

    def _known(self, name: str) -> list[str]:
        if not (versions := self._repository.versions(name)):
            raise NotFoundError(f"unknown model `{name}`", hint=LIST_HINT)
        return versions

    async def sync(self) -> None:
        """Load new and changed bundles from disk and unload those that are gone; failures are logged."""
        async with self._lock:
            bundles = await in_thread(lambda: _find(self._path))
            if self._repository.draining or not bundles:
                return
            for found in bundles:
                if self._is_new(found):
                    await self._put(found, [])
            await self._retire_missing(bundles)

    def _is_new(self, found: Found) -> bool:
        return self._seen.get(found.path) != file_stamps(found)

    def _serves(self, found: Found) -> bool:
        return any(model.path == found.path and model.state is State.READY for model in self._repository)

    async def _put(self, found: Found, errors: list[DemiError]) -> None:
        """Load one bundle and put it into the repository, unless it failed and its predecessor still serves."""
        self._seen[found.path] = file_stamps(found)
        model = await in_thread(lambda: load_one(found, self._settings, self._load, errors))
        if self._repository.draining:
            model.close()
            return
        before = self._repository.get(model.name, model.version)
        if before and before.state is State.READY and model.state is not State.READY:
            return
        self._repository.put(model)
        if before:
            await self._retire(before, "model replaced: name=%s version=%s")

    async def _retire_missing(self, bundles: list[Found], name: str | None = None) -> None:
        paths = {found.path for found in bundles}
        for model in list(self._repository):
            if model.path not in paths and name in (None, model.name):
                self._seen = {path: seen for path, seen in self._seen.items() if path != model.path}
                await self._retire(model)
                self._repository.remove(model)

    async def _retire(self, model: Model, message: str = "model unloaded: name=%s version=%s") -> None:
        """Unload a model once its admitted requests are answered, or after the server's drain time."""
        model.drain()
        stop = time.monotonic() + self._settings.drain_s
        while model.in_flight and time.monotonic() < stop:
            await asyncio.sleep(0.005)
        model.retire()
        self._repository.forget(model)
        log.info(message, model.name, model.version)


def file_stamps(found: Found) -> FileStamps:
    """Return the stamps of a bundle's files, which differ once a file other than a proof changes (loading
    writes proofs); empty if they cannot be read."""
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


def allowed(control: ModelControl | None) -> ModelControl:
    """Return the control if the settings allow clients to use it. Raise ForbiddenError otherwise."""
    if control is None:
        raise ForbiddenError(
            "clients may not load or unload models on this server", hint="start it with --allow-model-control"
        )
    return control


def version_parameter(parameters: Mapping[str, object]) -> str | None:
    """Return the version that a request to load or unload names in its parameters; None if it names none.

    Raises RequestError for parameters that supply files or a configuration, and for unknown ones: an ignored parameter
    could unload more than was meant.
    """
    for name in parameters:
        if name == "config" or name.startswith("file:"):
            raise RequestError(
                f"parameter `{name}` supplies a model or its configuration, which this server does not accept",
                hint="put the bundle into the server's model folder and load it by name",
            )
        if name not in ("version", "unload_dependents"):
            raise RequestError(f"unknown parameter `{name}`", hint="`version` names one version of the model")
    version = parameters.get("version")
    if version is None:
        return None
    if isinstance(version, bool) or not isinstance(version, str | int) or not str(version):
        raise RequestError("parameter `version` is neither a text nor a whole number")
    return str(version)
