"""Metrics of several servers in one text: each sample gets a label that names its server, each family is described once.

Sums are left to Prometheus, which also divides by time: a sum made here would jump whenever a server comes or goes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

LABEL = "replica"

_COMMENT = re.compile(r"# (HELP|TYPE) (\S+)")
_SAMPLE = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)(\{)?")


@dataclass(slots=True)
class _Family:
    """A metric's HELP and TYPE lines, and its samples from all servers."""

    comments: dict[str, str] = field(default_factory=dict)
    samples: list[str] = field(default_factory=list)


def join_metrics(texts: Mapping[str, bytes]) -> bytes:
    """Return one text in Prometheus' format from the texts of servers by their names.

    The texts are those of `demi.server.telemetry.metrics`: the comments of a family come right before its samples.
    """
    families: dict[str, _Family] = {}
    for server, text in texts.items():
        name = ""
        for line in text.decode().splitlines():
            if comment := _COMMENT.match(line):
                kind, name = comment.groups()
                families.setdefault(name, _Family()).comments.setdefault(kind, line)
            elif line:
                families.setdefault(name, _Family()).samples.append(_labelled(line, server))
    lines = [line for family in families.values() for line in (*family.comments.values(), *family.samples)]
    return ("\n".join(lines) + "\n").encode()


def _labelled(sample: str, server: str) -> str:
    """Add the label to one sample."""
    value = server.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
    found = _SAMPLE.match(sample)
    assert found is not None  # the text is our own
    rest = sample[found.end() :]
    labels = f'{LABEL}="{value}"' + ("," if found[2] else "}")
    return f"{found[1]}{{{labels}{rest}"
