"""Demi over HTTP and gRPC beside ONNX Runtime in a bare loop and, where they are installed, other servers.

    python -m bench.serving --seconds 2 --rounds 3
    python -m bench.serving --bundle models/minilm/1 --peers triton=PYTHON,mlserver=PYTHON,litserve=PYTHON

PYTHON is the interpreter of an environment with that peer and ONNX Runtime: nvidia-pytriton (which carries Triton's
C++ server), mlserver, or litserve. Everything is measured in one run, turn by turn, all servers alive at once, so that
a noisy machine disturbs them alike; each turn is bounded in time and stays on this machine's loopback.

Every connection sends its next request when it has its answer. The limit is the same model in this process without a
server: batches of as many rows as there are connections, up to the bundle's maximum, one after the other. Prints
Markdown tables with the median of the rounds; `of limit` is the median of the rounds' own ratios, `CPU` what the
server's processes used for one request, and `errors` counts every answer that is neither 200 nor 503.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from bench.serving.models import write_mlp
from bench.serving.sections import SECTIONS, Setup
from bench.serving.subjects import PEERS
from demi.bundles.bundle import open_bundle
from demi.tensors import DType


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bundle", type=Path, action="append", default=[], help="another bundle to measure")
    parser.add_argument("--only", default=",".join(SECTIONS), help="sections, by commas")
    parser.add_argument("--connections", default="1,8,32,64", help="numbers of connections, by commas")
    parser.add_argument("--peers", default="", help="NAME=PYTHON of peers, by commas")
    parser.add_argument("--threads", type=int, default=1, help="threads of one run, for the limit and the peers too")
    parser.add_argument("--seconds", type=float, default=2.0, help="length of one turn, at most 30")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each, at most 20")
    args = parser.parse_args()
    peers = dict(pair.split("=", 1) for pair in filter(None, args.peers.split(",")))
    if unknown := [name for name in peers if name not in PEERS]:
        parser.error(f"unknown peer {unknown[0]}; there are {', '.join(PEERS)}")
    setup = Setup(
        counts=tuple(int(count) for count in args.connections.split(",")),
        threads=args.threads,
        seconds=min(args.seconds, 30.0),
        rounds=min(args.rounds, 20),
        peers={name: Path(python) for name, python in peers.items()},
    )
    with tempfile.TemporaryDirectory() as folder:
        bundles = [open_bundle(path) for path in (write_mlp(Path(folder) / "mlp"), *args.bundle)]
        for section in args.only.split(","):
            for bundle in bundles:
                if any(spec.dtype is DType.BYTES for spec in bundle.manifest.inputs):
                    parser.error("inputs of strings are not measured here")
                print(f"\n{section}, {bundle.manifest.name}\n", flush=True)
                for text in SECTIONS[section](bundle, setup):
                    print(text, flush=True)


if __name__ == "__main__":
    main()
