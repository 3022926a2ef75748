"""The share of a model's requests that a version answers, by the rules in the model's folder, as `demi list` shows it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from demi.bundles.traffic import FILE
from demi.cli.version_places import Folder
from demi.errors import DemiError


@dataclass(frozen=True, slots=True)
class Share:
    """The rules of a model for one version; `problem` is the reason if they cannot be read."""

    percent: float | None = None
    """Share of the requests that name no version."""
    aliases: tuple[str, ...] = ()
    header: str = ""
    """Requests with this header go to the version, whatever the share."""
    problem: str = ""

    @property
    def words(self) -> str:
        """Return the share for people: `90% (stable, blue)`."""
        if self.problem:
            return self.problem
        header = f", and those with {self.header}" if self.header else ""
        names = f" ({', '.join(self.aliases)})" if self.aliases else ""
        return f"{self.percent:g}%{header}{names}"


def share_of(bundle: Path) -> Share | None:
    """Return the share of the version in this folder; None if its model has no rules, so that the newest version answers."""
    folder = bundle.parent
    if not (folder / FILE).is_file():
        return None
    try:
        document = Folder(folder).show()
    except DemiError as error:
        return Share(problem=f"the rules cannot be read: {error.message}")
    found = next((each for each in document["versions"] if each["version"] == bundle.name), None)
    if found is None:
        return None
    canary = document["canary"] or {}
    header = canary["header"] if canary.get("version") == bundle.name else ""
    return Share(found["percent"], tuple(found["aliases"]), header)
