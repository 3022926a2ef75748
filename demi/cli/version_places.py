"""Places in which the rules among a model's versions are changed: in the model's folder, or on a running server."""

from __future__ import annotations

import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from demi.bundles import traffic as rules
from demi.bundles.bundle import open_bundle
from demi.bundles.find import bundles_at, models_below, versions
from demi.bundles.traffic import FILE, NEWEST, Canary, Traffic, parse_header, read_traffic, write_traffic
from demi.errors import BundleError, InputError
from demi.files import unwritable

TIMEOUT_S = 660.0
"""Time for a server to load a version before it answers, in seconds: more than its own limit (`--load-timeout`)."""

Document = dict[str, Any]
"""The versions of a model and the rules among them, as `GET /v2/models/NAME/versions` returns them."""


class Place(Protocol):
    """The versions of one model. Each change returns the versions after it; all raise the DemiError that prevents it."""

    def show(self) -> Document:
        """Return the versions and rules as they are."""

    def canary(self, version: str | None, percent: float, header: str) -> Document:
        """Send a share of the requests to a version, by default the newest."""

    def promote(self, version: str | None) -> Document:
        """Make a version stable, by default the canary."""

    def roll_back(self, version: str | None) -> Document:
        """End the canary, or return to the stable version of before."""

    def alias(self, aliases: Mapping[str, str | None]) -> Document:
        """Set aliases; None removes one."""


class Folder:
    """A model's folder. Changes go into its `versions.json`, which running servers follow within a second."""

    def __init__(self, path: Path) -> None:
        self._path = _model_folder(path)

    def show(self) -> Document:
        """Return the versions on disk and the rules among them."""
        return self._document(read_traffic(self._path))

    def canary(self, version: str | None, percent: float, header: str) -> Document:
        """Send a share of the requests to a version, by default the newest."""
        before, there = read_traffic(self._path), versions(self._path)
        number = self._number(version, before) if version else there[-1]
        others = [each for each in there if each != number]
        if not others:
            raise InputError(
                "the model has no other version that could stay the stable one",
                where=str(self._path),
                hint="export a second version first: demi export writes the next one by itself",
            )
        wanted = Canary(number, percent, parse_header(header) if header else None)
        changed = rules.with_canary(before, wanted, others[-1])
        self._require_same_inputs(changed)
        return self._change(changed)

    def promote(self, version: str | None) -> Document:
        """Make a version stable, by default the canary."""
        before = read_traffic(self._path)
        if version == NEWEST:
            return self._change(rules.following_newest(before))
        number = self._number(version, before) if version else None
        return self._change(rules.promoted(before, number, self._answering(before)))

    def roll_back(self, version: str | None) -> Document:
        """End the canary, or return to the stable version of before."""
        before = read_traffic(self._path)
        if version:
            return self._change(rules.rolled_back_to(before, self._number(version, before)))
        return self._change(rules.rolled_back(before, versions(self._path), self._answering(before)))

    def alias(self, aliases: Mapping[str, str | None]) -> Document:
        """Set aliases; None removes one."""
        changed = read_traffic(self._path)
        for alias, version in aliases.items():
            changed = rules.with_alias(changed, alias, self._number(version, changed) if version else None)
        return self._change(changed)

    def _change(self, changed: Traffic) -> Document:
        try:
            write_traffic(self._path, changed)
        except OSError as error:
            raise unwritable(self._path / FILE, error) from error
        return self._document(changed)

    def _answering(self, traffic: Traffic) -> int:
        return traffic.stable or versions(self._path)[-1]

    def _number(self, version: str, traffic: Traffic) -> int:
        there = versions(self._path)
        number = int(version) if version.isascii() and version.isdecimal() else traffic.named(version)
        if number not in there:
            names = ", ".join([*map(str, there), *traffic.named_versions])
            raise InputError(f"the model has no version `{version}`", where=str(self._path), hint=f"it has {names}")
        return number

    def _require_same_inputs(self, changed: Traffic) -> None:
        assert changed.canary is not None
        now, then = (
            open_bundle(self._path / str(each), verify=False).manifest.inputs
            for each in (changed.stable, changed.canary.version)
        )
        if why := rules.difference(now, then):
            raise InputError(
                f"versions {changed.stable} and {changed.canary.version} cannot share traffic: {why}",
                where=str(self._path),
                hint="give the version a model name of its own, or promote it once its clients are ready",
            )

    def _document(self, traffic: Traffic) -> Document:
        answering = self._answering(traffic)
        canary = traffic.canary
        return {
            "name": self._path.resolve().name,
            "answering": str(answering),
            "stable": None if traffic.stable is None else str(traffic.stable),
            "canary": canary
            and {"version": str(canary.version), "percent": canary.percent, "header": str(canary.header or "")},
            "aliases": {alias: str(version) for alias, version in traffic.aliases.items()},
            "previous": list(map(str, traffic.previous)),
            "versions": [
                {
                    "version": str(version),
                    "aliases": traffic.names_of(version),
                    "percent": _percent(traffic, version, answering),
                }
                for version in versions(self._path)
            ],
        }


class Server:
    """A running server, asked over HTTP. It saves changes in the model's folder itself."""

    def __init__(self, url: str, model: str, key_file: Path | None = None) -> None:
        if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
            raise InputError(f"`{url}` is not the address of a server", hint="write it as http://localhost:8000")
        name = urllib.parse.quote(Path(model).name, safe="")
        self._url = url.rstrip("/")
        self._versions = f"/v2/models/{name}/versions"
        self._rules = f"/v2/repository/models/{name}"
        self._key = _first_key(key_file) if key_file else None

    def show(self) -> Document:
        """Return the versions that the server holds, with the requests, times and accuracy of each."""
        return self._ask(self._versions, None)

    def canary(self, version: str | None, percent: float, header: str) -> Document:
        """Send a share of the requests to a version, by default the newest; the server loads it if it must."""
        return self._ask(f"{self._rules}/canary", {"version": version, "percent": percent, "header": header})

    def promote(self, version: str | None) -> Document:
        """Make a version stable, by default the canary."""
        return self._ask(f"{self._rules}/promote", {"version": version})

    def roll_back(self, version: str | None) -> Document:
        """End the canary, or return to the stable version of before."""
        return self._ask(f"{self._rules}/rollback", {"version": version})

    def alias(self, aliases: Mapping[str, str | None]) -> Document:
        """Set aliases; None removes one."""
        return self._ask(f"{self._rules}/aliases", dict(aliases))

    def _ask(self, path: str, body: Mapping[str, Any] | None) -> Document:
        data = None if body is None else json.dumps(body).encode()
        headers = {"content-type": "application/json"}
        if self._key:
            headers["authorization"] = f"Bearer {self._key}"
        request = urllib.request.Request(self._url + path, data, headers)
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
                found = json.loads(answer.read())
        except urllib.error.HTTPError as error:
            raise InputError(_reason(error), where=self._url) from error
        except (OSError, ValueError) as error:
            why = getattr(error, "reason", None) or error
            raise InputError(
                f"the server does not answer: {why}", where=self._url, hint="give its address with --server"
            ) from error
        if not isinstance(found, dict) or "versions" not in found:
            raise InputError("the answer is not that of a Demi server", where=self._url)
        return found


def _model_folder(path: Path) -> Path:
    """Return the folder of the one model that `path` stands for. Raises BundleError if there is none, or several."""
    if versions(path):
        return path
    if len(found := models_below(path)) == 1 and versions(found[0]):
        return found[0]
    if bundles_at(path) == [path]:
        raise BundleError("this is the folder of one version", where=str(path), hint="give the model's: models/NAME")
    names = ", ".join(str(each) for each in found[:8])
    raise BundleError(
        f"the folder holds {len(found)} models" if found else "there is no model with versions here",
        where=str(path),
        hint=f"choose one: {names}" if found else "give a model's folder: models/NAME, with models/NAME/1 below it",
    )


def _percent(traffic: Traffic, version: int, answering: int) -> float:
    if traffic.canary and version == traffic.canary.version:
        return traffic.canary.percent
    return (100.0 - traffic.canary.percent if traffic.canary else 100.0) if version == answering else 0.0


def _first_key(path: Path) -> str:
    try:
        lines = [line.strip() for line in path.read_text("utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError("the API key cannot be read", where=str(path)) from error
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:
        raise InputError("the file contains no API key", where=str(path))
    return keys[0]


def _reason(error: urllib.error.HTTPError) -> str:
    try:
        return str(json.loads(error.read())["error"])
    except (OSError, ValueError, KeyError, TypeError):
        return f"the server answers {error.code} {error.reason}"
