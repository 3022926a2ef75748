"""Demi over HTTP and gRPC beside ONNX Runtime in a bare loop and, if installed, other servers.

    python -m bench.serving --seconds 2 --rounds 3
    python -m bench.serving --bundle models/minilm/1 --peers triton=PYTHON,mlserver=PYTHON,litserve=PYTHON

PYTHON is the interpreter of an environment with that peer and ONNX Runtime: nvidia-pytriton (which contains Triton's
C++ server), mlserver, or litserve. The section `openvino` needs Triton's environment to have OpenVINO as well. Everything is measured in one run, in alternating turns of servers that all run at
once, so that a noisy machine disturbs them alike. Each turn is bounded in time and stays on this machine's loopback.

Each connection sends its next request once it has its answer. The limit is the same model in this process without a
server: batches of as many rows as there are connections, up to the bundle's maximum, one after the other. Prints
Markdown tables with the median of the rounds: `of limit` is the median of the rounds' ratios, `CPU` the CPU time of the
server's processes per request, and `errors` the number of answers other than 200 and 503.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from bench.serving.models import write_mlp
from bench.serving.sections import SECTIONS
from bench.serving.setup import Setup
from bench.serving.subjects import PEERS
from demi.bundles.bundle import open_bundle
from demi.tensors import DType


def main() -> None:
    """Run the benchmark and print its tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bundle", type=Path, action="append", default=[], help="a further bundle to measure")
    parser.add_argument("--only", default=",".join(SECTIONS), help="sections, comma-separated")
    parser.add_argument("--connections", default="1,8,32,64", help="numbers of connections, comma-separated")
    parser.add_argument("--peers", default="", help="NAME=PYTHON of each peer, comma-separated")
    parser.add_argument("--threads", type=int, default=1, help="threads per run, also of the limit and the peers")
    parser.add_argument("--seconds", type=float, default=2.0, help="seconds per turn, at most 30")
    parser.add_argument("--rounds", type=int, default=3, help="turns per server, at most 20")
    args = parser.parse_args()
    peers = dict(pair.split("=", 1) for pair in filter(None, args.peers.split(",")))
    if unknown := [name for name in peers if name not in PEERS]:
        parser.error(f"unknown peer {unknown[0]}; choose from {', '.join(PEERS)}")
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
                    parser.error("bundles with string inputs cannot be measured")
                print(f"\n{section}, {bundle.manifest.name}\n", flush=True)
                for text in SECTIONS[section](bundle, setup):
                    print(text, flush=True)


if __name__ == "__main__":
    main()
