"""Rules that choose the version of a model that answers: stable version, canary, aliases, and the way back.

They are kept in `versions.json` in the model's folder, beside its versions. A model without that file is answered by its
newest version. Commands and servers change the rules with the same functions, which return new rules.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from demi.errors import InputError
from demi.files import write_bytes_whole
from demi.tensors import TensorSpec

FILE = "versions.json"
SCHEMA = 1

STABLE, CANARY, NEWEST = "stable", "canary", "newest"
MAX_BYTES = 1 << 20
"""A larger file is not read."""
MAX_PREVIOUS = 10
"""Earlier stable versions that are remembered."""

_ALIAS = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,63}")
_HEADER = re.compile(r"[A-Za-z0-9-]{1,64}")

Version = Annotated[int, Meta(ge=1)]


@dataclass(frozen=True, slots=True)
class Header:
    """Header that sends a request to the canary: one that has it, with this value if there is one."""

    name: str
    value: str = ""

    def matches(self, value: str | None) -> bool:
        """Return whether a request with this value of the header goes to the canary; None if it has no such header."""
        return value is not None and (not self.value or value == self.value)

    def __str__(self) -> str:
        return f"{self.name}={self.value}" if self.value else self.name


@dataclass(frozen=True, slots=True)
class Canary:
    """Version that answers a share of the requests in place of the stable one."""

    version: Version
    percent: Annotated[float, Meta(ge=0, le=100)]
    """Share of the requests without a version that it answers."""
    header: Header | None = None
    """Requests with this header go to it as well, whatever the share."""


@dataclass(frozen=True, slots=True)
class Traffic:
    """Rules of one model. Without a stable version, the newest that is ready answers."""

    stable: Version | None = None
    canary: Canary | None = None
    aliases: dict[str, Version] = field(default_factory=dict)
    """Further names of versions, usable wherever a version is."""
    previous: tuple[Version, ...] = ()
    """Earlier stable versions, the latest first: where `rolled_back` goes."""
    schema: int = SCHEMA

    def named(self, alias: str) -> int | None:
        """Return the version that an alias stands for; None if it is not one."""
        if alias == STABLE:
            return self.stable
        if alias == CANARY:
            return self.canary.version if self.canary else None
        return self.aliases.get(alias)

    def names_of(self, version: int) -> list[str]:
        """Return the aliases of a version."""
        return [name for name in (STABLE, CANARY, *sorted(self.aliases)) if self.named(name) == version]

    @property
    def named_versions(self) -> dict[str, int]:
        """Version by name, of all aliases that stand for one."""
        return {
            name: version
            for name in (STABLE, CANARY, *sorted(self.aliases))
            if (version := self.named(name)) is not None
        }


def with_canary(traffic: Traffic, canary: Canary, answering: int) -> Traffic:
    """Send a share of the traffic to a canary. `answering` is the version that answers now; it becomes the stable one.

    Raises InputError if that is the canary itself.
    """
    stable = traffic.stable or answering
    if stable == canary.version:
        raise InputError(
            f"version {stable} already answers all requests, so it cannot be the canary as well",
            hint="choose another version, or make an older one stable first (demi promote MODEL VERSION)",
        )
    return replace(traffic, stable=stable, canary=canary)


def promoted(traffic: Traffic, version: int | None, answering: int | None) -> Traffic:
    """Make a version stable: by default the canary. All requests without a version then go to it.

    `answering` is the version that answers now, to which `rolled_back` returns. Raises InputError without a canary.
    """
    if version is None:
        if traffic.canary is None:
            raise InputError("there is no canary to promote", hint="give the version that is to be stable")
        version = traffic.canary.version
    before = traffic.stable or answering
    previous = [each for each in (before, *traffic.previous) if each not in (None, version)]
    canary = None if traffic.canary and traffic.canary.version == version else traffic.canary
    return replace(traffic, stable=version, canary=canary, previous=_latest(previous))


def following_newest(traffic: Traffic) -> Traffic:
    """Let the newest version that is ready answer again, with no canary."""
    return replace(traffic, stable=None, canary=None, previous=())


def rolled_back(traffic: Traffic, versions: Sequence[int], answering: int | None) -> Traffic:
    """End the canary; without one, make the stable version of before stable again.

    `versions` are those that there are, and `answering` is the one that answers now. Where no stable version was ever
    chosen, the version below it becomes stable. Raises InputError if there is nothing to go back to.
    """
    if traffic.canary is not None:
        return replace(traffic, canary=None)
    now = traffic.stable or answering
    earlier = [each for each in traffic.previous if each in versions]
    if not traffic.previous and now is not None:
        earlier = sorted((each for each in versions if each < now), reverse=True)[:1]
    if not earlier:
        raise InputError(
            "there is no earlier version to roll back to",
            hint=f"name one of {', '.join(map(str, versions))}" if versions else "",
        )
    return replace(traffic, stable=earlier[0], previous=_latest(traffic.previous[1:]))


def rolled_back_to(traffic: Traffic, version: int) -> Traffic:
    """End the canary and make `version` stable; later stable versions are no longer ones to go back to."""
    previous = list(traffic.previous)
    after = previous[previous.index(version) + 1 :] if version in previous else previous
    return replace(traffic, stable=version, canary=None, previous=_latest([each for each in after if each != version]))


def with_alias(traffic: Traffic, alias: str, version: int | None) -> Traffic:
    """Give a version another name, or remove the name (None). Raises InputError for a name that cannot be one."""
    check_alias(alias)
    aliases = {name: number for name, number in traffic.aliases.items() if name != alias}
    if version is not None:
        aliases[alias] = version
    elif alias not in traffic.aliases:
        raise InputError(f"there is no alias `{alias}`")
    return replace(traffic, aliases=dict(sorted(aliases.items())))


def check_alias(alias: str) -> None:
    """Raise InputError for a text that cannot be an alias."""
    if alias in (STABLE, CANARY, NEWEST):
        raise InputError(
            f"`{alias}` cannot be set as an alias",
            hint="demi promote sets the stable version, demi canary the canary, and the newest version needs no alias",
        )
    if not _ALIAS.fullmatch(alias):
        raise InputError(
            f"`{alias}` cannot be an alias", hint="use letters, digits, `.`, `_` and `-`, starting with a letter"
        )


def parse_header(text: str) -> Header:
    """Parse `NAME` or `NAME=VALUE`. Raises InputError for a name that no header has."""
    name, _, value = text.partition("=")
    if not _HEADER.fullmatch(name):
        raise InputError(f"`{text}` is not a header", hint="write x-canary, or x-canary=yes for one value only")
    return Header(name.lower(), value)


def difference(now: Sequence[TensorSpec], then: Sequence[TensorSpec]) -> str:
    """Return how the inputs of two versions differ, so that clients of one cannot call the other; empty if they do not."""
    old, new = ({spec.name: str(spec) for spec in specs} for specs in (now, then))
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) != new.get(name):
            return f"input `{name}` is {old.get(name, 'absent')} in one and {new.get(name, 'absent')} in the other"
    return ""


def read_traffic(folder: Path) -> Traffic:
    """Return the rules in a model's folder; empty ones without a file. Raises InputError for a file that is not valid."""
    path = folder / FILE
    try:
        if path.stat().st_size > MAX_BYTES:
            raise _invalid(path, "it is too large")
        data = path.read_bytes()
    except FileNotFoundError:
        return Traffic()
    except OSError as error:
        raise InputError(f"the file cannot be read: {error.strerror or error}", where=str(path)) from error
    return decode(data, path)


def decode(data: bytes, path: Path) -> Traffic:
    """Return rules from their bytes. Raises InputError, naming what is wrong."""
    try:
        raw: Any = msgspec.json.decode(data)
        traffic = msgspec.convert(raw, Traffic)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise _invalid(path, str(error)) from error
    if traffic.schema != SCHEMA:
        raise _invalid(path, f"it has schema {traffic.schema}; this Demi reads schema {SCHEMA}")
    if unknown := raw.keys() - _members():
        raise _invalid(path, f"unknown member `{min(unknown)}`")
    for alias in traffic.aliases:
        check_alias(alias)
    if traffic.canary and traffic.canary.header:
        parse_header(traffic.canary.header.name)
    return traffic


def write_traffic(folder: Path, traffic: Traffic) -> None:
    """Write the rules into a model's folder, atomically. Raises OSError."""
    write_bytes_whole(folder / FILE, encode(traffic))


def encode(traffic: Traffic) -> bytes:
    """Return the rules as indented JSON."""
    return msgspec.json.format(msgspec.json.encode(traffic), indent=2) + b"\n"


def _members() -> set[str]:
    members: Mapping[str, Any] = msgspec.to_builtins(Traffic())
    return set(members)


def _latest(versions: Sequence[int | None]) -> tuple[int, ...]:
    found = [each for each in dict.fromkeys(versions) if each is not None]
    return tuple(found[:MAX_PREVIOUS])


def _invalid(path: Path, why: str) -> InputError:
    return InputError(
        f"the rules for a model's versions are not valid: {why}",
        where=str(path),
        hint="correct the file, or delete it: the newest version then answers",
    )
