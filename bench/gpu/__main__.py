"""All measurements on a GPU, in one command.

    python -m bench.gpu                                  within nine minutes, on one GPU
    python -m bench.gpu --only speed,accuracy --json out.json
    python -m bench.gpu --device cpu --quick             the same code on tiny shapes, to see that it runs

Prints one Markdown table a section as soon as it is there. Ends with 1 when a section failed
or its time was up; the others go on.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

from bench.gpu.sections import SECTIONS, Outcome, limits, run_here, run_section
from bench.gpu.setup import markdown


def main() -> int:
    """Run the sections one after the other."""
    args = arguments()
    if args.section:
        run_here(args.section, args)
        return 0
    if unknown := [name for name in args.only.split(",") if name not in SECTIONS]:
        print(f"error: no section `{unknown[0]}`\nhint: choose among {', '.join(SECTIONS)}", file=sys.stderr)
        return 2
    if args.quick:
        print("tiny shapes: what follows shows that the code runs, and measures nothing")
    with tempfile.TemporaryDirectory(prefix="demi-gpu-") as folder:
        args.work = args.work or Path(folder)
        args.work.mkdir(parents=True, exist_ok=True)
        outcomes = {}
        for name, limit_s in limits(args.only.split(","), time.monotonic() + args.seconds):
            outcomes[name] = run_section(name, args, limit_s)
            show(outcomes[name])
            if args.json:
                args.json.write_text(json.dumps({name: found.document() for name, found in outcomes.items()}, indent=1))
    return int(not all(found.complete for found in outcomes.values()))


def show(found: Outcome) -> None:
    """Print one section."""
    print(f"\n## {found.title}\n")
    if found.rows:
        print(markdown(found.rows))
    print(f"\n{found.note}", flush=True)


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"), help="where to measure (default: cuda)")
    parser.add_argument("--quick", action="store_true", help="tiny shapes and batches of 1 and 2")
    parser.add_argument("--only", default=",".join(SECTIONS), metavar="A,B", help=f"sections: {', '.join(SECTIONS)}")
    parser.add_argument("--batch", metavar="N,N", help="batch sizes (default: 1,8,32,128)")
    parser.add_argument("--seconds", type=float, default=540, help="seconds for all sections (default: 540)")
    parser.add_argument("--each", type=float, help="seconds for one measurement (default: 0.3, or 0.01 with --quick)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every row here as well")
    parser.add_argument("--work", type=Path, metavar="DIR", help="keep the models here, for another run")
    parser.add_argument("--section", choices=tuple(SECTIONS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.batch = args.batch or ("1,2" if args.quick else "1,8,32,128")
    args.each = args.each or (0.01 if args.quick else 0.3)
    return args


if __name__ == "__main__":
    sys.exit(main())
