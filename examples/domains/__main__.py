"""All seven examples, one after another, and the table of their figures.

python -m examples.domains                          (make examples)
python -m examples.domains vision speech            some of them
python -m examples.domains --write docs/domains.md  the table in the document, too
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

from examples.demo import DemoError
from examples.domains.domain import Domain, Row
from examples.domains.steps import WORK, tell
from examples.domains.table import table, write

NAMES = ("language", "vision", "speech", "recommendation", "medical", "driving", "service")


def domain_of(name: str) -> Domain:
    """Return the example of this name."""
    domain: Domain = importlib.import_module(f"examples.domains.{name}").DOMAIN
    return domain


def main() -> int:
    """Run the examples; a failed one does not stop the others, and makes the exit code 1."""
    parser = argparse.ArgumentParser(description="Seven worked examples, one for each domain.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"some of {', '.join(NAMES)} (default: all)")
    parser.add_argument("--work", type=Path, default=WORK, help=f"folder to write to ({WORK})")
    parser.add_argument("--write", type=Path, metavar="MD", help="document whose table is replaced, if all passed")
    args = parser.parse_args()
    if unknown := sorted(set(args.names) - set(NAMES)):
        parser.error(f"there is no example {unknown[0]}; there are {', '.join(NAMES)}")
    rows: list[Row] = []
    failed: list[str] = []
    for name in args.names or NAMES:
        try:
            rows.append(tell(domain_of(name), args.work))
        except DemoError as error:
            failed.append(name)
            print(f"\n{name} FAILED: {error}", file=sys.stderr)
    print(table(rows))
    if args.write and not failed:
        write(args.write, rows)
    print(f"examples FAILED: {', '.join(failed)}" if failed else f"{len(rows)} examples passed")
    return int(bool(failed))


if __name__ == "__main__":
    raise SystemExit(main())
