"""Every wild model in both halves: `python -m tests.wild.table` exports them and prints a Markdown table.

    python -m tests.wild.table
    python -m tests.wild.table --only magika,lac --precision fp16

The seconds are those of `demi export` as a whole, interpreter and imports included. Errors are relative L2 under the
emulator, on inputs that are not among the samples. Every export that fails is a row, too; the exit code then is 1.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.wild.exporting import PRECISIONS, Exported, Judged, export, judge
from tests.wild.models import BY_NAME, WILD, Wild

HEADER = """\
| model | MB | half | seconds | CPU seconds | nodes in half | FLOPs in half | predicted | measured | answer |
| --- | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |"""


def row(model: Wild, exported: Exported, judged: Judged | None) -> str:
    """Return a model's line."""
    size = f"{model.path.stat().st_size / 1e6:.1f}"
    start = f"| {model.name} | {size} | {exported.precision} | {exported.seconds:.0f} | {exported.cpu_seconds:.0f} |"
    if judged is None:
        return f"{start} | | | | {_cell(exported.failure)} |"
    nodes = f"{_half_nodes(exported.facts)} of {_nodes(exported.facts)}"
    flops = f"{1 - exported.facts['fp32_share']['flops']:.1%}"
    predicted = max((value or 0 for value in exported.facts["predicted_relative_l2"].values()), default=0)
    answer = f"differs: {_cell(judged.answer)}" if judged.answer else "the same"
    over = " (over budget)" if judged.over else ""
    return f"{start} {nodes} | {flops} | {predicted:.1e} | {judged.error:.1e}{over} | {answer} |"


def _cell(text: str) -> str:
    return text.replace("|", "/").replace("\n", " ")[:160]


def _nodes(facts: Mapping[str, Any]) -> int:
    return sum(count["count"] for count in facts["nodes"])


def _half_nodes(facts: Mapping[str, Any]) -> int:
    return sum(count["count"] for count in facts["nodes"] if count["precision"] == "half")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(BY_NAME), metavar="A,B", help="names of models (default: all)")
    parser.add_argument("--precision", choices=PRECISIONS, action="append", help="fp16 or bf16 (default: both)")
    parser.add_argument("--work", metavar="DIR", help="where bundles are left (default: nowhere)")
    options = parser.parse_args(arguments)
    names = options.only.split(",")
    unknown = sorted(set(names) - set(BY_NAME))
    if unknown:
        parser.error(f"there is no {', '.join(unknown)}; there are {', '.join(BY_NAME)}")
    with tempfile.TemporaryDirectory(prefix="demi-wild-") as temporary:
        folder = Path(options.work or temporary)
        return _print_table([model for model in WILD if model.name in names], options.precision or PRECISIONS, folder)


def _print_table(models: Sequence[Wild], precisions: Sequence[str], folder: Path) -> int:
    print(HEADER, flush=True)
    failed = False
    for model in models:
        if model.missing:
            print(f"{model.name}: {model.missing}", file=sys.stderr)
            failed = True
            continue
        for precision in precisions:
            exported = export(model, precision, folder)
            judged = None if exported.failure else judge(model, exported)
            failed = failed or judged is None or bool(judged.over or judged.answer)
            print(row(model, exported, judged), flush=True)
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
