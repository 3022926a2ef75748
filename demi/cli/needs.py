"""Needs of each command: extras of Demi, and the packages that they bring."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from packaging.requirements import Requirement

DISTRIBUTION = "demi-inference"

NEEDS: Mapping[str, tuple[str, ...]] = {
    "export": ("cpu", "export"),
    "rescale": ("cpu", "export"),
    "train": ("train",),
    "repair": ("train",),
    "calibrate": ("cpu", "export"),
    "check": ("cpu", "export"),
    "diff": ("cpu", "export"),
    "explain": ("cpu", "export"),
    "bench": ("cpu", "export"),
    "serve": ("cpu", "server"),
    "report": ("report",),
    "versions": (),
    "canary": (),
    "promote": (),
    "rollback": (),
    "push": ("remote",),
    "pull": ("remote",),
    "deploy": ("deploy",),
    "run": ("cpu",),
    "list": (),
    "inspect": (),
    "doctor": (),
    "completion": ("completion",),
}
"""Extras without which a command cannot work."""

HELPFUL: Mapping[str, Mapping[str, str]] = {
    "export": {"torch": "PyTorch files", "report": "report.html", "processing": "text, images, sound"},
    "rescale": {"torch": "PyTorch files"},
    "calibrate": {"torch": "PyTorch files"},
    "bench": {"report": "--html"},
    "serve": {
        "remote": "models in buckets",
        "oci": "models in registries",
        "otel": "traces",
        "processing": "text, images, sound",
    },
    "push": {"oci": "registries"},
    "pull": {"oci": "registries"},
    "run": {"processing": "text, images, sound"},
    "check": {"processing": "text, images, sound"},
}
"""Extras for a part of a command, and which part."""

INSTEAD = {"onnxruntime": "onnxruntime-gpu"}
"""Packages that replace another: they share its import name."""

NOT_REQUIRED = {"openvino"}
"""Packages that an extra brings and that its commands also work without."""


@dataclass(frozen=True, slots=True)
class Package:
    """One package of an extra: what Demi asks for, and the version that is installed, if any."""

    name: str
    wanted: str
    version: str | None
    fits: bool

    @property
    def problem(self) -> str:
        """Return what is wrong with it in a few words; empty if nothing is."""
        if self.version is None:
            return f"{self.name} is missing"
        return "" if self.fits else f"{self.name} is {self.version}, and {self.wanted} is needed"


Installed = Callable[[str], str | None]
"""Returns the installed version of a package, or None."""


def installed_version(name: str) -> str | None:
    """Return the version of an installed package, or None."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def requirements() -> list[str]:
    """Return what Demi's own metadata asks for; empty if Demi runs from a checkout that was never installed."""
    try:
        return importlib.metadata.requires(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        return []


def packages_by_extra(wanted: Sequence[str], version_of: Installed = installed_version) -> dict[str, list[Package]]:
    """Return the packages of each extra on this machine, from requirements in the form of PEP 508."""
    found: dict[str, list[Package]] = {}
    for requirement in map(Requirement, wanted):
        for extra in _extras_of(str(requirement.marker or "")):
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                found.setdefault(extra, []).append(_package(requirement, version_of))
    return found


def problems(extra: str, packages: Mapping[str, Sequence[Package]]) -> list[str]:
    """Return what an extra lacks here; packages that its commands work without do not count."""
    if extra not in packages:
        return [f"the installed Demi does not know its extra `{extra}`: install Demi again"]
    return [each.problem for each in packages.get(extra, ()) if each.problem and each.name not in NOT_REQUIRED]


def _package(requirement: Requirement, version_of: Installed) -> Package:
    version = version_of(requirement.name) or version_of(INSTEAD.get(requirement.name, requirement.name))
    fits = version is not None and requirement.specifier.contains(version, prereleases=True)
    return Package(requirement.name, str(requirement.specifier) or "any version", version, fits)


def _extras_of(marker: str) -> list[str]:
    """Return the extras that a marker names: `extra == "cpu" and platform_machine == "x86_64"` gives `cpu`."""
    return re.findall(r"""extra == ["']([\w-]+)["']""", marker)
