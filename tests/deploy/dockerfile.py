"""The Dockerfile as data: the instructions of a target's image, from its first stage to its last."""

from __future__ import annotations

import io
import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field

from dockerfile_parse import DockerfileParser

from tests.paths import ROOT

DOCKERFILE = ROOT / "Dockerfile"


@dataclass(frozen=True, slots=True)
class Step:
    """One instruction and what follows it."""

    instruction: str
    value: str


@dataclass(slots=True)
class Image:
    """Return the settings of a target's image: the later of two instructions wins."""

    env: dict[str, str] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    runs: list[str] = field(default_factory=list)
    copies: list[list[str]] = field(default_factory=list)
    user: str = "root"
    entrypoint: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)
    healthcheck: list[str] = field(default_factory=list)
    ports: list[int] = field(default_factory=list)
    volumes: list[str] = field(default_factory=list)
    stop_signal: str = "SIGTERM"

    def follow(self, step: Step) -> None:
        """Do as one instruction says."""
        match step.instruction:
            case "ENV":
                self.env |= _pairs(step.value)
            case "LABEL":
                self.labels |= _pairs(step.value)
            case "RUN":
                self.runs.append(re.sub(r"--mount=\S+\s+", "", step.value))
            case "COPY":
                self.copies.append(shlex.split(step.value))
            case "USER":
                self.user = step.value
            case "ENTRYPOINT":
                self.entrypoint = json.loads(step.value)
            case "CMD":
                self.command = json.loads(step.value)
            case "HEALTHCHECK":
                self.healthcheck = json.loads(step.value.split("CMD", 1)[1])
            case "EXPOSE":
                self.ports += map(int, step.value.split())
            case "VOLUME":
                self.volumes += step.value.split()
            case "STOPSIGNAL":
                self.stop_signal = step.value


def steps(text: str | None = None) -> list[Step]:
    """Every instruction of a Dockerfile (the project's own unless given), in order."""
    parser = DockerfileParser(fileobj=io.BytesIO((DOCKERFILE.read_text() if text is None else text).encode()))
    return [
        Step(entry["instruction"], entry["value"]) for entry in parser.structure if entry["instruction"] != "COMMENT"
    ]


def image(target: str, arguments: Mapping[str, str] | None = None) -> Image:
    """The image of a target, with its build arguments put in; KeyError where a stage does not exist."""
    values: dict[str, str] = {}
    stages: dict[str, tuple[str, list[Step]]] = {}
    inside: list[Step] | None = None
    for step in steps():
        if step.instruction == "FROM":
            base, name = re.fullmatch(r"(\S+) AS (\S+)", filled(step.value, values)).groups()  # type: ignore[union-attr]
            inside = []
            stages[name] = (base, inside)
        elif inside is None:
            values |= _pairs(step.value)
            values |= {name: value for name, value in (arguments or {}).items() if name in values}
        else:
            inside.append(Step(step.instruction, filled(step.value, values)))
    made = Image()
    for step in _lineage(stages, target, values["PYTHON_IMAGE"]):
        made.follow(step)
    return made


def filled(text: str, values: Mapping[str, str]) -> str:
    """The text with `${NAME}` replaced, for the names that have a value."""
    return re.sub(r"\$\{(\w+)\}", lambda match: values.get(match[1], match[0]), text)


def _lineage(stages: Mapping[str, tuple[str, list[Step]]], name: str, outside: str) -> list[Step]:
    base, own = stages[name]
    return own if base == outside else _lineage(stages, base, outside) + own


def _pairs(text: str) -> dict[str, str]:
    return dict(word.split("=", 1) for word in shlex.split(text))
