"""Demi as a Ray Serve application: `serve run demi.ray:app models=models/`.

`python -m demi.ray` prints the variables to set before Ray starts; docs/scale.md has the rest.
"""

# No `from __future__ import annotations`, as in demi/server/ray/args.py: Ray needs the class `Args`, not its name.

import shlex
from typing import Any

from demi.errors import PackageError
from demi.server.ray.args import Args
from demi.server.ray.grpc import add_servicer
from demi.server.ray.options import ENVIRONMENT, deployment_options

__all__ = ["Args", "add_servicer", "app"]


def app(args: Args) -> Any:
    """Return the application for these arguments, a `ray.serve.Application`.

    Raises InputError for settings that do not exist or have no effect under Ray, and PackageError without Ray.
    """
    try:
        from ray import serve
    except ImportError as error:
        raise PackageError(
            "Ray Serve is not installed", hint="install it with: pip install 'demi-inference[ray]'"
        ) from error
    from demi.server.ray.replica import Replica

    deployment = serve.deployment(name="Demi", **deployment_options(args))(serve.ingress()(Replica))
    return deployment.bind(str(args.models), args.settings)


def main() -> None:
    """Print shell commands that set the variables of the cluster: `eval "$(python -m demi.ray)"`."""
    for name, value in ENVIRONMENT.items():
        print(f"export {name}={shlex.quote(value)}")


if __name__ == "__main__":
    main()
