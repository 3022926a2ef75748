"""`python -m bench.scale SECTION...`: what several replicas on Ray Serve are worth, on this machine alone.

Each section prints its numbers and, where there is a goal, whether it is met; the exit code is 1 if one is not. Ratios are of
turns taken one after the other in the same minutes, because absolute speed depends on what else the machine does.
"""

from __future__ import annotations

import argparse
import os
import sys

from bench.scale import faults, scaling, speed
from bench.scale.goals import Goal
from bench.scale.isolated import is_isolated, isolate, reason_against
from demi.runtime.openvino.capability import read_cpu

SECTIONS = {
    "scaling": scaling.measure,
    "speed": speed.measure,
    "kill": faults.kill_replicas,
    "node": faults.kill_nodes,
    "update": faults.update,
    "shrink": faults.shrink,
}


def main() -> int:
    """Run the sections that are asked for, apart from the network."""
    parser = argparse.ArgumentParser(prog="python -m bench.scale", description=__doc__)
    parser.add_argument("sections", nargs="+", choices=SECTIONS, metavar="SECTION", help=", ".join(SECTIONS))
    parser.add_argument("--repetitions", type=int, default=10, help="of each fault (default: 10)")
    parser.add_argument("--seconds", type=float, default=5.0, help="length of a turn of measuring speed (default: 5)")
    args = parser.parse_args()
    if not is_isolated():
        if reason := reason_against():
            parser.error(f"Ray listens on all interfaces, and this machine cannot isolate it: {reason}")
        return isolate([sys.executable, "-m", "bench.scale", *sys.argv[1:]])
    print(f"{read_cpu().name}, {os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}")
    goals: list[Goal] = []
    for name in args.sections:
        print(f"\n{name}", flush=True)
        for goal in SECTIONS[name](args.repetitions, args.seconds):
            print(goal, flush=True)
            goals.append(goal)
    return 0 if all(goal.met for goal in goals) else 1


if __name__ == "__main__":
    sys.exit(main())
