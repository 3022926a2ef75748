"""Fill the templates of manifests. Every value is written as JSON, which YAML reads as one scalar whatever it holds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from demi.deploy.models import DeployedModel
from demi.deploy.options import DeployOptions, Target, require_label
from demi.deploy.sizing import MIB, Sizes, size_server
from demi.errors import InputError, missing_package

TEMPLATES = Path(__file__).parent / "templates"

DRAIN_S = 30
"""Default of the server's `--drain`: a test compares the two."""

RAY_VERSION = "2.60.0"
"""The Ray that the extra `ray` installs."""

RAY_ENVIRONMENT = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response",
    "RAY_SERVE_HAPROXY_TUNE_BUFSIZE": "131072",
}
"""Variables without which Ray loses requests, those of `demi.server.ray.options`: a test compares the two."""

PRESTOP_S = 5
"""Seconds between a pod's removal from its Service and the signal to the server: endpoints are updated with a delay."""


def render_manifests(target: Target, models: Sequence[DeployedModel], options: DeployOptions) -> str:
    """Return the manifests, YAML documents with comments, that serve these models on the target.

    Raises InputError for a model or a source that the target cannot take, and PackageError without Jinja.
    """
    if target == "kserve":
        for model in models:
            require_label(model.name, "model's name")
    if target == "ray" and options.claim is None:
        raise InputError(
            "under Ray, every node must find the models at one path",
            hint="put them on a volume, with `demi pull` if they are in a bucket: --models-from pvc://CLAIM",
        )
    sizes = size_server(models, options)
    values = {
        "o": options,
        "models": models,
        "sizes": sizes,
        "source_of": lambda model: f"{options.source.rstrip('/')}/{model.name}",
        "comment": _summary(models, sizes),
        "prestop_s": PRESTOP_S,
        "grace_s": PRESTOP_S + DRAIN_S + 10,
        "ray_environment": RAY_ENVIRONMENT,
        "ray_version": RAY_VERSION,
        "query_label": f'namespace="{options.namespace}",' if options.namespace else "",
    }
    return str(_environment().get_template(f"{target}.yaml.j2").render(values))


def _summary(models: Sequence[DeployedModel], sizes: Sizes) -> str:
    """Return what the manifests are for, in one line."""
    names = ", ".join(model.name for model in models[:8]) + (f" and {len(models) - 8} more" if len(models) > 8 else "")
    on_disk = sum(model.file_bytes for model in models) / MIB
    return (
        f"{names}: {on_disk:,.1f} MiB of files; {sizes.memory_mib} MiB of memory are a guess, `demi bench` measures it"
    )


def _environment() -> Any:
    try:
        import jinja2
    except ImportError as error:
        raise missing_package("jinja2", "deploy") from error
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["q"] = json.dumps
    return environment
