"""Repository of models with versions, from a folder `models/NAME/VERSION/manifest.json` or from a single bundle."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from demi.bundles import manifest as manifests
from demi.bundles.bundle import open_bundle
from demi.bundles.find import versions
from demi.bundles.traffic import STABLE, Canary, Traffic
from demi.errors import BundleError, DemiError, MissingError
from demi.server.errors import LIST_HINT, NotFoundError, full_text
from demi.server.models.loading import Loaded, load_bundle
from demi.server.models.model import Model, State
from demi.server.settings import ServeSettings

log = logging.getLogger("demi.server")

Load = Callable[[Path, ServeSettings], Loaded]
ReadHeader = Callable[[str], str | None]
"""Returns a request's header by its lower-case name; None if it has none."""

_NO_RULES = Traffic()


@dataclass(frozen=True, slots=True)
class Found:
    """A bundle's folder, with name and version according to its path; None if the path does not give them."""

    path: Path
    name: str | None = None
    version: int | None = None


class Repository:
    """Models of a server by name and version, and the rules that choose among versions. Owns the models.

    Untrusted names are only looked up, never used as paths. `draw` returns a number from 0 to below 1.
    """

    def __init__(self, models: list[Model], *, strict: bool = False, draw: Callable[[], float] = random.random) -> None:
        self._strict = strict
        self._draw = draw
        self._models: dict[str, dict[str, Model]] = {}
        self._traffic: dict[str, Traffic] = {}
        self._replaced: list[Model] = []
        for model in models:
            self.put(model)
        self.draining = False

    def __iter__(self) -> Iterator[Model]:
        return (model for versions in self._models.values() for model in versions.values())

    @property
    def ready(self) -> bool:
        """Return whether the server is ready: a model is ready, and none is loading, has failed while serving or shuts down."""
        return not self.reason

    @property
    def reason(self) -> str:
        """The reason that the server is not ready; empty if it is."""
        if self.draining:
            return "the server is shutting down"
        models = [model for model in self if model.in_service or (self._strict and model.failed_to_load)]
        if not models:
            return "no model is loaded"
        waiting = [model for model in models if model.state is not State.READY]
        return "; ".join(f"model `{model.name}` version {model.version}: {model.reason}" for model in waiting)

    @property
    def in_flight(self) -> int:
        """Number of requests admitted and not answered yet."""
        return sum(model.in_flight for model in (*self, *self._replaced))

    def find(self, name: str, version: str | None = None) -> Model:
        """Return a model by name and version or alias. Without a version, return the stable one if there is one, else the
        newest that is ready, else the newest.

        Raises NotFoundError for an unknown name, version or alias.
        """
        candidates = self._models.get(name)
        if not candidates:
            raise NotFoundError(f"unknown model `{name}`", hint=LIST_HINT)
        if version is None:
            return self._without_version(name, candidates)
        if version in candidates:
            return candidates[version]
        if version == STABLE:
            return self._without_version(name, candidates)
        if (meant := self.traffic(name).named(version)) is not None and str(meant) in candidates:
            return candidates[str(meant)]
        raise self._unknown_version(name, version, meant)

    def route(self, name: str, version: str | None, header: ReadHeader) -> Model:
        """Return the model that is to answer an inference request: as `find` does, or the canary by its share.

        A canary that is not ready gets no requests. Raises NotFoundError as `find` does.
        """
        traffic = self._traffic.get(name) if version is None else None
        if traffic is not None and traffic.canary is not None:
            model = self.get(name, str(traffic.canary.version))
            if model is not None and model.state is State.READY and self._is_for(traffic.canary, header):
                return model
        return self.find(name, version)

    def _is_for(self, canary: Canary, header: ReadHeader) -> bool:
        if canary.header and canary.header.matches(header(canary.header.name)):
            return True
        return self._draw() * 100 < canary.percent

    def _without_version(self, name: str, candidates: dict[str, Model]) -> Model:
        if (stable := self.traffic(name).stable) is None:
            return _newest(candidates)
        if str(stable) not in candidates:
            raise self._unknown_version(name, STABLE, stable)
        return candidates[str(stable)]

    def _unknown_version(self, name: str, version: str, meant: int | None) -> NotFoundError:
        known = ", ".join([*self._models[name], *self.traffic(name).named_versions])
        what = f"`{version}`" if meant is None else f"`{version}` (version {meant})"
        return NotFoundError(f"unknown version {what} of model `{name}`; it has {known}")

    def traffic(self, name: str) -> Traffic:
        """Return the rules that choose among a model's versions; empty ones by default."""
        return self._traffic.get(name, _NO_RULES)

    def set_traffic(self, name: str, traffic: Traffic) -> None:
        """Replace the rules of a model; they apply to the next request."""
        self._traffic = {key: rules for key, rules in self._traffic.items() if key != name}
        if traffic != _NO_RULES:
            self._traffic[name] = traffic

    def has_choice(self, name: str) -> bool:
        """Return whether a model has several versions, or rules that choose among them."""
        return name in self._traffic or len(self._models.get(name, {})) > 1

    def newest(self, name: str) -> Model | None:
        """Return the newest version of a model that is ready, else its newest; None for an unknown model."""
        candidates = self._models.get(name)
        return _newest(candidates) if candidates else None

    def share(self, model: Model) -> float:
        """Return the percentage of the requests without a version that a model version answers now."""
        canary = self.traffic(model.name).canary
        away = 0.0
        if canary is not None:
            other = self.get(model.name, str(canary.version))
            is_ready = other is not None and other.state is State.READY
            if model is other:
                return canary.percent if is_ready else 0.0
            away = canary.percent if is_ready else 0.0
        try:
            return 100.0 - away if self.find(model.name) is model else 0.0
        except NotFoundError:
            return 0.0

    def versions(self, name: str) -> list[str]:
        """Return the versions of a model, oldest first; empty for an unknown model."""
        return list(self._models.get(name, {}))

    def get(self, name: str, version: str) -> Model | None:
        """Return a model by name and version, or None."""
        return self._models.get(name, {}).get(version)

    def put(self, model: Model) -> None:
        """Add a model under its name and version. The model that it replaces is kept until `forget` is called with it."""
        if before := self.get(model.name, model.version):
            self._replaced.append(before)
        versions = {**self._models.get(model.name, {}), model.version: model}
        self._models[model.name] = dict(sorted(versions.items(), key=lambda item: _rank(item[0])))
        self._models = dict(sorted(self._models.items()))

    def remove(self, model: Model) -> None:
        """Remove a model, so that its name and version are unknown."""
        self._models[model.name].pop(model.version)
        if not self._models[model.name]:
            del self._models[model.name]

    def forget(self, model: Model) -> None:
        """Drop a model that was replaced."""
        if model in self._replaced:
            self._replaced.remove(model)

    def drain(self) -> None:
        """Stop admitting requests to all models."""
        self.draining = True
        for model in self:
            model.drain()

    def close(self, timeout_s: float) -> bool:
        """Close all models and wait at most `timeout_s` seconds for each. Return whether all have ended."""
        models = [*self, *self._replaced]
        for model in models:
            model.close()
        return all(model.join(timeout_s) for model in models)


def open_repository(path: Path, settings: ServeSettings, load: Load = load_bundle) -> Repository:
    """Load the models at or below `path`, one after the other. Those that fail are kept, with the reason.

    Raises BundleError if there is no bundle, and the error of a bundle if none can be served.
    """
    errors: list[DemiError] = []
    models = [load_one(found, settings, load, errors) for found in find_bundles(path)]
    if len(errors) == len(models):
        raise _nothing_to_serve(path, errors)
    return Repository(models, strict=settings.strict_readiness)


def find_bundles(path: Path) -> list[Found]:
    """Return the bundles at or below `path`: one bundle, the versions of one model, or a folder of models.

    Raises BundleError if there is none. Skips hidden folders, such as drafts that are being written.
    """
    if not path.is_dir():
        raise BundleError(
            "no such folder" if not path.exists() else "not a folder",
            where=str(path),
            hint="give a folder of bundles: models/NAME/VERSION/manifest.json",
        )
    found = _bundles_in(path, None)
    if not found:
        folders = sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
        found = [bundle for folder in folders for bundle in _bundles_in(folder, folder.name)]
    if not found:
        raise BundleError(
            "the folder holds no bundle", where=str(path), hint="create one with: demi export --fp16 model.pt"
        )
    return found


def _bundles_in(folder: Path, name: str | None) -> list[Found]:
    if (folder / manifests.MANIFEST).is_file():
        return [Found(folder, name)]
    return [Found(folder / str(version), name, version) for version in versions(folder)]


def name_of(found: Found) -> str:
    """Return the name a bundle is served under: from its path, else from its manifest, else the folder's name."""
    if found.name:
        return found.name
    try:
        return open_bundle(found.path, verify=False).manifest.name
    except (DemiError, OSError):
        return found.path.resolve().name


def version_of(found: Found) -> str:
    """Return the version a bundle is served as: from its path, else from its manifest, else 1."""
    if found.version is not None:
        return str(found.version)
    try:
        return str(open_bundle(found.path, verify=False).manifest.version)
    except (DemiError, OSError):
        return "1"


def load_one(found: Found, settings: ServeSettings, load: Load, errors: list[DemiError]) -> Model:
    """Load a bundle and return its model, ready or failed. If it failed, append the error to `errors`."""
    model = Model(found.name or found.path.resolve().name, str(found.version or 1), settings, found.path)
    try:
        name, version = _identify(found)
        model = Model(name, str(version), settings, found.path)
        model.start(load(found.path, settings))
        log.info("model loaded: name=%s version=%s precision=%s", name, version, model.loaded.precision)
    except Exception as error:  # whatever is wrong with one bundle must not affect the others
        errors.append(known := _as_demi_error(error, found))
        model.fail(full_text(known))
        log.error(
            "model not served: name=%s version=%s path=%s reason=%s",
            model.name,
            model.version,
            found.path,
            full_text(known),
        )
    return model


def _as_demi_error(error: Exception, found: Found) -> DemiError:
    if isinstance(error, DemiError):
        return error
    log.debug("loading %s failed", found.path, exc_info=error)
    return BundleError(f"the bundle cannot be loaded: {full_text(error)}", where=str(found.path))


def _identify(found: Found) -> tuple[str, int]:
    """Return name and version from the manifest. Raise BundleError if the bundle's path gives others."""
    manifest = open_bundle(found.path, verify=False).manifest
    for what, place, inside in (("name", found.name, manifest.name), ("version", found.version, manifest.version)):
        if place is not None and place != inside:
            raise BundleError(
                f"the folder gives {what} `{place}`, but the manifest `{inside}`",
                where=str(found.path),
                hint="move the bundle to models/NAME/VERSION with the name and version of its manifest",
            )
    return manifest.name, manifest.version


def _nothing_to_serve(path: Path, errors: list[DemiError]) -> DemiError:
    """Return one error for all bundles: something missing on the machine if there is, else the first error and the count."""
    for error in errors:
        if isinstance(error, MissingError) or len(errors) == 1:
            return error
    return BundleError(
        f"none of the {len(errors)} bundles can be served; the first error: {full_text(errors[0])}",
        where=str(path),
        hint="see the log above for the reason of each",
    )


def _newest(candidates: dict[str, Model]) -> Model:
    """Return the newest version that is ready, else the newest."""
    if len(candidates) == 1:
        return next(iter(candidates.values()))
    newest_first = list(reversed(candidates.values()))
    return next((model for model in newest_first if model.state is State.READY), newest_first[0])


def _rank(version: str) -> tuple[int, str]:
    return (int(version) if version.isdecimal() else -1, version)
