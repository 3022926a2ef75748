"""The choices of whoever deploys, checked: names, image, replicas, where the models are."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from demi.errors import InputError

Target = Literal["kubernetes", "kserve", "ray", "helm"]

PARTS = ("disruption", "monitor", "scaling", "network")
"""Resources around the servers that can be left out: PodDisruptionBudget, PodMonitor, ScaledObject, NetworkPolicy."""

_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
"""A DNS label, which names of most Kubernetes resources must be (RFC 1123)."""

_SOURCE = re.compile(r"(?P<scheme>pvc|s3|gs|oci|https)://(?P<rest>[A-Za-z0-9][\w.:/@-]*)")


@dataclass(frozen=True, slots=True)
class DeployOptions:
    """The choices behind a manifest; `options_from` in `demi/cli/deploy.py` makes it from the command line."""

    name: str = "demi"
    namespace: str | None = None
    image: str = ""
    """Empty for the image that `docker build` of this repository makes."""
    device: Literal["cpu", "cuda"] = "cpu"
    cpus: int = 2
    instances: int = 1
    replicas: tuple[int, int] = (2, 10)
    """Fewest and most replicas; equal numbers turn scaling off."""
    source: str = "pvc://demi-models"
    """Place in which pods find the models: a volume claim, or a bucket or registry."""
    prometheus: str = "http://prometheus-operated.monitoring:9090"
    monitoring_namespace: str = "monitoring"
    api_keys: str | None = None
    """A Secret with `keys`, the file of `--api-key-file`, and `metrics`, a key of it for Prometheus."""
    spare_gpu: bool = False
    """Update without an outage: a new pod takes another GPU before the old pod gives up its own."""
    without: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        for field in ("name", "namespace", "api_keys", "monitoring_namespace"):
            if (value := getattr(self, field)) is not None:
                require_label(value, field.replace("_", " "))
        if not _SOURCE.fullmatch(self.source):
            raise InputError(
                f"`{self.source}` is not a place of models",
                hint="give pvc://CLAIM, s3://BUCKET/FOLDER, gs://BUCKET/FOLDER, oci://REGISTRY/REPOSITORY or https://HOST/FOLDER",
            )
        least, most = self.replicas
        if not 1 <= least <= most:
            raise InputError(
                f"{least}:{most} is not a range of replicas", hint="give MIN:MAX, such as 2:10, or a number"
            )

    @property
    def container_image(self) -> str:
        """Return the image: the one given, else what this repository's Dockerfile builds for the device."""
        return self.image or ("demi:gpu" if self.device == "cuda" else "demi:latest")

    @property
    def scales(self) -> bool:
        """Return whether the number of replicas follows the load."""
        return self.replicas[0] < self.replicas[1] and "scaling" not in self.without

    @property
    def claim(self) -> str | None:
        """Return the name of the volume claim, or None if the models are in a bucket or registry."""
        return self.source.removeprefix("pvc://").split("/")[0] if self.source.startswith("pvc://") else None

    def has(self, part: str) -> bool:
        """Return whether one of `PARTS` is wanted."""
        return part not in self.without


def require_label(name: str, what: str) -> None:
    """Raise InputError for a name that Kubernetes would refuse."""
    if not _LABEL.fullmatch(name):
        raise InputError(
            f"the {what} `{name}` is not a name that Kubernetes takes",
            hint="use at most 63 lower-case letters, digits and hyphens",
        )
