"""Traffic between the versions of a model: canary, promotion, rollback and aliases while the server runs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path

from demi.bundles import traffic as rules
from demi.bundles.traffic import FILE, NEWEST, Canary, Header, Traffic
from demi.errors import DemiError, InputError
from demi.printable import printable
from demi.server.clock import now_ms
from demi.server.errors import LIST_HINT, NotFoundError, RequestError, full_text
from demi.server.models.model import Model, State
from demi.server.models.repository import Repository
from demi.server.scheduling.statistics import Totals
from demi.server.threads import in_thread

log = logging.getLogger("demi.server")

Stamp = tuple[int, int, int]
"""Inode, size in bytes and modification time in nanoseconds of a file."""
LoadVersion = Callable[[str, str], Awaitable[None]]
"""Loads one version of a model from disk; raises as `Control.load` does."""


@dataclass(frozen=True, slots=True)
class Since:
    """Time of the last change of a model's rules (ms since 1970), and each version's statistics at that time."""

    when_ms: int
    totals: dict[str, Totals]


class TrafficControl:
    """Changes the rules of models and keeps them in `versions.json`. Used on the event loop's thread only.

    A change applies to the next request; requests in flight are answered by the version that they were sent to. Files
    changed by others, such as `demi rollback models/NAME`, are followed.
    """

    def __init__(self, repository: Repository, load: LoadVersion) -> None:
        self._repository = repository
        self._load = load
        self._lock = asyncio.Lock()
        self._stamps: dict[Path, Stamp | None] = {}
        self._since: dict[str, Since] = {}
        for name, folder in self._folders().items():
            self._stamps[folder] = _stamp(folder)
            if self._stamps[folder] is not None:
                self._apply_file(name, folder)

    def since(self, name: str) -> Since | None:
        """Return when the rules of a model last changed in this process; None if they have not."""
        return self._since.get(name)

    async def canary(self, name: str, version: str | None, percent: float, header: Header | None = None) -> bool:
        """Send a share of a model's traffic to a version, by default the newest; load it first if it is not loaded.

        Returns whether the rules were saved. Raises InputError for rules that make no sense or inputs that differ, and
        what loading raises.
        """
        async with self._lock:
            before = self._rules(name)
            number = self._number(name, version) if version else self._newest_other(name, before)
            changed = rules.with_canary(before, Canary(number, percent, header), self._other(name, number))
            if before.stable is None and self._repository.get(name, str(number)) is None:
                await self._change(name, replace(before, stable=changed.stable))  # else, once loaded, it answers all
            await self._require_ready(name, number)
            self._require_same_inputs(name, changed)
            return await self._change(name, changed)

    async def promote(self, name: str, version: str | None) -> bool:
        """Make a version stable, by default the canary; `newest` lets the newest answer again. Raises as `canary` does."""
        async with self._lock:
            before = self._rules(name)
            if version == NEWEST:
                return await self._change(name, rules.following_newest(before))
            number = self._number(name, version) if version else None
            changed = rules.promoted(before, number, self._answering(name))
            assert changed.stable is not None
            await self._require_ready(name, changed.stable)
            return await self._change(name, changed)

    async def roll_back(self, name: str, version: str | None) -> bool:
        """End the canary; without one, return to the stable version of before. Raises as `canary` does."""
        async with self._lock:
            before = self._rules(name)
            if version:
                changed = rules.rolled_back_to(before, self._number(name, version))
            else:
                changed = rules.rolled_back(before, self._numbers(name), self._answering(name))
            if changed.stable is not None:
                await self._require_ready(name, changed.stable)
            return await self._change(name, changed)

    async def alias(self, name: str, aliases: dict[str, str | None]) -> bool:
        """Set the versions that aliases stand for; None removes an alias. Raises as `canary` does."""
        async with self._lock:
            changed = self._rules(name)
            for alias, version in aliases.items():
                changed = rules.with_alias(changed, alias, None if version is None else self._number(name, version))
            return await self._change(name, changed)

    async def follow(self) -> None:
        """Apply the files that have changed since they were last read. Errors are logged, and the old rules stay."""
        folders = self._folders()
        stamps = await in_thread(lambda: {folder: _stamp(folder) for folder in folders.values()})
        for name, folder in folders.items():
            if stamps[folder] == self._stamps.get(folder):
                continue
            async with self._lock:
                self._stamps[folder] = stamps[folder]
                await self._load_named(name, folder)
                self._apply_file(name, folder)

    async def _load_named(self, name: str, folder: Path) -> None:
        """Load the versions that the file of a model sends requests to, if they are not loaded yet."""
        try:
            found = rules.read_traffic(folder)
        except InputError:
            return  # `_apply_file` logs it
        for number in {found.stable, found.canary and found.canary.version} - {None}:
            model = self._repository.get(name, str(number))
            if model is None or model.state is State.FAILED:
                if self._rules(name).stable is None:
                    self._set(name, replace(self._rules(name), stable=self._answering(name)))  # as in `canary`
                try:
                    await self._load(name, str(number))
                except DemiError as error:
                    log.error("%s: version %s cannot be loaded: %s", printable(name), number, full_text(error))

    def _apply_file(self, name: str, folder: Path) -> None:
        try:
            found = rules.read_traffic(folder)
            self._require_same_inputs(name, found)
        except InputError as error:
            log.error("%s: %s is not applied: %s", printable(name), FILE, full_text(error))
            return
        for alias, version in found.named_versions.items():
            if self._repository.get(name, str(version)) is None:
                log.warning("%s: %s names version %d (%s), which there is not", printable(name), FILE, version, alias)
        self._set(name, found)

    async def _change(self, name: str, changed: Traffic) -> bool:
        """Apply rules and save them. Return whether they were saved; if not, they are gone when the server ends."""
        self._set(name, changed)
        folder = self._folders().get(name)
        if folder is None:
            log.warning("%s: its versions' rules are not saved: it is served from a bundle's own folder", name)
            return False
        try:
            await in_thread(lambda: rules.write_traffic(folder, changed))
        except OSError as error:
            log.warning("%s: %s cannot be written, so the rules end with this server: %s", name, FILE, error)
            return False
        self._stamps[folder] = await in_thread(lambda: _stamp(folder))
        return True

    def _set(self, name: str, changed: Traffic) -> None:
        if changed == self._repository.traffic(name):
            return
        self._repository.set_traffic(name, changed)
        self._since[name] = Since(now_ms(), {model.version: model.statistics.totals() for model in self._models(name)})
        canary = changed.canary
        log.info(
            "traffic changed: name=%s stable=%s canary=%s percent=%s",
            printable(name),
            changed.stable or NEWEST,
            canary.version if canary else "none",
            f"{canary.percent:g}" if canary else "0",
        )

    def _rules(self, name: str) -> Traffic:
        if not self._repository.versions(name):
            raise NotFoundError(f"unknown model `{name}`", hint=LIST_HINT)
        return self._repository.traffic(name)

    def _numbers(self, name: str) -> list[int]:
        return [int(version) for version in self._repository.versions(name) if version.isdecimal()]

    def _number(self, name: str, version: str) -> int:
        """Return the number of a version or alias; a number need not be loaded yet."""
        if version.isascii() and version.isdecimal() and int(version) > 0:
            return int(version)
        return int(self._repository.find(name, version).version)

    def _newest_other(self, name: str, before: Traffic) -> int:
        """Return the newest version that does not answer yet. Raises RequestError if there is only one."""
        numbers = [number for number in self._numbers(name) if number != before.stable]
        if not numbers:
            raise RequestError(f"model `{name}` has no version but its stable one", hint="name a version")
        return numbers[-1]

    def _other(self, name: str, number: int) -> int:
        """Return the newest version that is ready besides this one. Raises RequestError if there is none."""
        others = [model for model in self._models(name) if model.state is State.READY and model.version != str(number)]
        if not others:
            raise RequestError(f"model `{name}` has no other version that is ready and could stay the stable one")
        return int(others[-1].version)

    def _models(self, name: str) -> list[Model]:
        return [self._repository.find(name, version) for version in self._repository.versions(name)]

    def _answering(self, name: str) -> int | None:
        """Return the version that answers requests without a version now."""
        stable = self._repository.traffic(name).stable
        newest = self._repository.newest(name)
        return stable or (int(newest.version) if newest is not None else None)

    async def _require_ready(self, name: str, number: int) -> Model:
        """Return a version that is ready, loading it if it is not. Raises what loading raises."""
        model = self._repository.get(name, str(number))
        if model is None or model.state is State.FAILED:
            await self._load(name, str(number))
        model = self._repository.find(name, str(number))
        model.check_ready()
        return model

    def _require_same_inputs(self, name: str, changed: Traffic) -> None:
        """Raise InputError if clients of the stable version could not call the canary."""
        if changed.canary is None or changed.stable is None:
            return
        pair = [self._repository.get(name, str(each)) for each in (changed.stable, changed.canary.version)]
        ready = [model for model in pair if model is not None and model.state is State.READY]
        if len(ready) == 2 and (why := rules.difference(ready[0].signature.inputs, ready[1].signature.inputs)):
            raise InputError(
                f"versions {ready[0].version} and {ready[1].version} of model `{name}` cannot share traffic: {why}",
                hint="give the version a model name of its own, or promote it once its clients are ready",
            )

    def _folders(self) -> dict[str, Path]:
        """Return the folder of each model that is served from `NAME/VERSION`."""
        return {
            model.name: model.path.parent
            for model in self._repository
            if model.path is not None and model.path.name == model.version
        }


def _stamp(folder: Path) -> Stamp | None:
    try:
        found = (folder / FILE).stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns
