"""The table of all examples, as Markdown, and its place in docs/domains.md."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from examples.domains.domain import HALVES, Row, Score

START, END = "<!-- table: python -m examples.domains -->", "<!-- end of the table -->"
HEADER = """\
| domain | data | metric | FP32 | FP16 (loss, 95% interval) | BF16 (loss, 95% interval) | MiB in FP32, FP16, BF16 | rows/s in FP32, FP16, BF16 | seconds |
| --- | --- | --- | ---: | --- | --- | --- | --- | ---: |"""


def table(rows: Sequence[Row]) -> str:
    """Return a Markdown table with a line for each measure of each example, and where and when it was made."""
    lines = [line for row in rows for line in _lines(row)]
    places = sorted({f"{row.machine}, {row.date}" for row in rows})
    return "\n".join(["", HEADER, *lines, "", f"Measured on {'; '.join(places)}.", ""])


def write(path: Path, rows: Sequence[Row]) -> None:
    """Replace the table in a document. Raises ValueError where its two marks are not there."""
    text = path.read_text(encoding="utf-8")
    before, start, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not (start and end):
        raise ValueError(f"{path} has no place for the table, between `{START}` and `{END}`")
    path.write_text(f"{before}{start}\n{table(rows)}\n{end}{after}", encoding="utf-8")


def _lines(row: Row) -> Iterable[str]:
    sizes = ", ".join(f"{row.mebibytes[name]:.2f}" for name in ("fp32", *HALVES))
    rates = ", ".join(f"{row.rows_per_second[name]:,.0f}" for name in ("fp32", *HALVES))
    first = True
    for measure, scores in row.scores.items():
        begin = f"{row.domain} | {row.data}" if first else " | "
        end = f"{sizes} | {rates} | {row.seconds:.0f}" if first else " | | "
        fp32 = scores[HALVES[0]].fp32
        yield f"| {begin} | {measure} | {fp32:.4f} | {' | '.join(_cell(scores[half]) for half in HALVES)} | {end} |"
        first = False


def _cell(score: Score) -> str:
    return f"{score.half:.4f} ({score.low:+.4f} to {score.high:+.4f})"
