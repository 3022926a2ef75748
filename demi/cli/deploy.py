"""`demi deploy`: write manifests that run a folder of models on Kubernetes, KServe or Ray; nothing is applied."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from demi.cli.console import Console
from demi.cli.options import positive
from demi.errors import InputError
from demi.files import write_whole

if TYPE_CHECKING:
    from demi.deploy.options import DeployOptions

TARGETS = {
    "kubernetes": "a Deployment and what belongs around it",
    "kserve": "runtimes, and an InferenceService for each model",
    "helm": "values for the chart in deploy/helm/demi",
    "ray": "a RayService for KubeRay; its serveConfigV2 is also a file for `serve deploy`",
}

APPLY = {
    "kubernetes": "kubectl apply -f {file}",
    "kserve": "kubectl apply -f {file}",
    "helm": "helm upgrade --install demi deploy/helm/demi --values {file}",
    "ray": "kubectl apply -f {file}",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `demi deploy`."""
    parser.add_argument(
        "target",
        choices=tuple(TARGETS),
        help="; ".join(f"{name}: {what}" for name, what in TARGETS.items()),
        metavar="TARGET",
    )
    parser.add_argument("models", type=Path, metavar="MODELS", help="a folder of models on this machine, or one bundle")
    parser.add_argument("-o", "--output", type=Path, metavar="YAML", help="file to write (default: print)")
    parser.add_argument("--force", action="store_true", help="replace the file if it exists")
    _add_placement(parser)
    _add_sizes(parser)


def _add_placement(parser: argparse.ArgumentParser) -> None:
    """Add what names the deployment and its neighbours."""
    parser.add_argument("--name", default="demi", help="name of the resources (default: demi)")
    parser.add_argument("--namespace", help="namespace of the resources (default: the one of `kubectl`)")
    parser.add_argument(
        "--image", default="", help="image to run (default: demi:latest, or demi:gpu with --device cuda)"
    )
    parser.add_argument(
        "--models-from",
        default="pvc://demi-models",
        metavar="URL",
        help="where pods find the models: pvc://CLAIM (default: pvc://demi-models), or s3://, gs://, oci:// or https://",
    )
    parser.add_argument(
        "--api-keys",
        metavar="SECRET",
        help="a Secret with `keys`, the file of --api-key-file, and `metrics`, one of these keys for Prometheus",
    )
    parser.add_argument(
        "--prometheus",
        default="http://prometheus-operated.monitoring:9090",
        metavar="URL",
        help="the Prometheus that scaling asks (default: %(default)s)",
    )
    parser.add_argument(
        "--monitoring-namespace",
        default="monitoring",
        metavar="NAME",
        help="namespace of Prometheus (default: monitoring)",
    )


def _add_sizes(parser: argparse.ArgumentParser) -> None:
    """Add what sizes the deployment."""
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="cpu (default), or cuda: one GPU per pod"
    )
    parser.add_argument(
        "--cpus", type=positive, default=2, metavar="N", help="cores that are reserved for a pod (default: 2)"
    )
    parser.add_argument(
        "--instances", type=positive, default=1, metavar="N", help="instances of each model in a pod (default: 1)"
    )
    parser.add_argument(
        "--replicas",
        type=_replicas,
        default=(2, 10),
        metavar="MIN:MAX",
        help="fewest and most pods; one number turns scaling off (default: 2:10)",
    )
    parser.add_argument(
        "--spare-gpu", action="store_true", help="update without an outage: a new pod starts on a spare GPU first"
    )
    parser.add_argument(
        "--without",
        type=_parts,
        default=frozenset(),
        metavar="PARTS",
        help="leave out, separated by commas: disruption, monitor, scaling, network",
    )


def run(args: argparse.Namespace, console: Console) -> int:
    """Read the models, and write the manifests."""
    from demi.deploy.models import read_models
    from demi.deploy.render import render_manifests

    if args.output is not None and args.output.is_file() and not args.force:
        raise InputError("the file exists", where=str(args.output), hint="use --force to replace it, or another file")
    text = render_manifests(args.target, read_models(args.models), options_from(args))
    if args.output is None:
        console.script(text.rstrip("\n"))  # names of models are letters and digits, everything else is escaped
        return 0
    write_whole(args.output, text)
    console.note(
        f"wrote {args.output}; nothing was applied. Read it, then: {APPLY[args.target].format(file=args.output)}"
    )
    return 0


def options_from(args: argparse.Namespace) -> DeployOptions:
    """Return the choices of the command line. Raises InputError for what Kubernetes would refuse."""
    from demi.deploy.options import DeployOptions

    return DeployOptions(
        name=args.name,
        namespace=args.namespace,
        image=args.image,
        device=args.device,
        cpus=args.cpus,
        instances=args.instances,
        replicas=args.replicas,
        source=args.models_from,
        prometheus=args.prometheus,
        monitoring_namespace=args.monitoring_namespace,
        api_keys=args.api_keys,
        spare_gpu=args.spare_gpu,
        without=args.without,
    )


def _replicas(text: str) -> tuple[int, int]:
    """Parse `MIN:MAX` or a number, for argparse."""
    least, _, most = text.partition(":")
    if not least.isdecimal() or not (most or least).isdecimal() or not 1 <= int(least) <= int(most or least):
        raise argparse.ArgumentTypeError(f"`{text}` is not a range of replicas, such as 2:10, nor a positive number")
    return int(least), int(most or least)


def _parts(text: str) -> frozenset[str]:
    """Parse names of parts separated by commas, for argparse."""
    from demi.deploy.options import PARTS

    parts = frozenset(part for part in text.replace(" ", "").split(",") if part)
    if unknown := sorted(parts - set(PARTS)):
        raise argparse.ArgumentTypeError(f"there is no part `{unknown[0]}`; parts are {', '.join(PARTS)}")
    return parts
