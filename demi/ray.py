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

__all__ = ["Args", "add_servicer", "app", "application"]


def app(args: Args) -> Any:
    """Return the application for these arguments, a `ray.serve.Application`.

    Raises InputError for settings that do not exist or have no effect under Ray, for an address that cannot be read, and PackageError without Ray.
    """
    from demi.server.ray.replica import Replica

    return application(args, Replica)


def application(args: Args, replica: type) -> Any:
    """Return the application whose replicas are of this class, a `demi.server.ray.replica.Replica` or a subclass."""
    try:
        from ray import serve
    except ImportError as error:
        raise PackageError(
            "Ray Serve is not installed", hint="install it with: pip install 'demi-inference[ray]'"
        ) from error
    deployment = serve.deployment(name="Demi", **deployment_options(args))(serve.ingress()(replica))
    return deployment.bind(args.place, args.settings)


def main() -> None:
    """Print shell commands that set the variables of the cluster: `eval "$(python -m demi.ray)"`."""
    for name, value in ENVIRONMENT.items():
        print(f"export {name}={shlex.quote(value)}")


if __name__ == "__main__":
    main()
