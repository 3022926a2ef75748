"""SVG charts for HTML pages. The only module that imports matplotlib.

Charts follow the colours of their page, light or dark: they are drawn in placeholder colours, which are then replaced by
CSS variables. The same numbers give the same bytes.
"""

from __future__ import annotations

import html
import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from demi.errors import missing_package

INK, MUTED, LINE, FIRST, SECOND, BAD = ("#010101", "#020202", "#030303", "#040404", "#050505", "#060606")
_VARIABLES = {INK: "ink", MUTED: "muted", LINE: "line", FIRST: "half", SECOND: "single", BAD: "bad"}

WIDTH = 5.6
"""Width in inches, narrow enough to be readable on a phone."""
LONGEST = 34
"""Most characters of a label; longer ones are shortened in the middle. The tables have the whole names."""

_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a node's name may hold a `$`
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": LINE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": INK,
    "ytick.major.size": 0,
    "legend.frameon": False,
}


def bars(title: str, labels: Sequence[str], values: Sequence[float], *, unit: str, limit: float | None = None) -> str:
    """Draw horizontal bars with their numbers, the first on top, as an SVG element.

    Bars beyond `limit`, which is drawn as a line, are coloured as errors; infinite ones end at the border. Raises
    PackageError without matplotlib.
    """
    finite = [value for value in values if math.isfinite(value)] or [0.0]
    reach = max([*finite, limit or 0.0]) * 1.18 or 1.0
    with _figure(title, 0.6 + 0.26 * len(labels)) as (figure, axes):
        shown = [min(value, reach) for value in values]
        colours = [BAD if limit is not None and value > limit else FIRST for value in values]
        rows = range(len(labels))
        axes.barh(rows, shown, color=colours, height=0.62)
        for row, value in zip(rows, values, strict=True):
            axes.annotate(
                f"{_number(value)}{unit}",
                (min(value, reach), row),
                xytext=(3, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
            )
        if limit is not None:
            axes.axvline(limit, color=BAD, linewidth=1.2, linestyle="--")
        axes.set_yticks(rows, [_short(label) for label in labels])
        axes.set_xlim(0, reach)
        axes.invert_yaxis()
        axes.grid(False, axis="y")
        axes.xaxis.set_major_formatter(lambda value, _: f"{_number(value)}{unit}")
        return _svg(figure, title)


def _number(value: float) -> str:
    """Return a number with three significant digits, and all digits of its whole part: 9,610 and not 9.61e+03."""
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e9 else f"{value:.3g}"


def grouped(title: str, groups: Sequence[str], series: Mapping[str, Sequence[float]], *, unit: str) -> str:
    """Draw two bars for each group, such as FP32 and half, as an SVG element.

    Raises PackageError without matplotlib.
    """
    with _figure(title, 2.3) as (figure, axes):
        width = 0.8 / len(series)
        for place, (name, values) in enumerate(series.items()):
            at = [group + (place - (len(series) - 1) / 2) * width for group in range(len(groups))]
            drawn = axes.bar(at, values, width * 0.94, label=name, color=(SECOND, FIRST)[place % 2])
            axes.bar_label(drawn, labels=[_number(value) for value in values], fontsize=7.5, padding=1)
        axes.set_xticks(range(len(groups)), groups)
        axes.set_xlim(-0.6, len(groups) - 0.4)
        axes.tick_params(axis="x", length=0, labelcolor=INK)
        axes.tick_params(axis="y", labelcolor=MUTED)
        axes.margins(y=0.14)
        axes.set_ylabel(unit)
        axes.grid(False, axis="x")
        figure.legend(loc="outside upper right", ncols=len(series), fontsize=8)
        return _svg(figure, title)


def line(title: str, steps: Sequence[float], values: Sequence[float], *, logarithmic: bool = False) -> str:
    """A curve over training steps as an SVG element; values that are not finite leave a gap.

    Raises PackageError without matplotlib.
    """
    shown = [value if math.isfinite(value) and (value > 0 or not logarithmic) else math.nan for value in values]
    with _figure(title, 2.2) as (figure, axes):
        axes.plot(steps, shown, color=FIRST, linewidth=1.1, marker="o" if len(steps) < 12 else None, markersize=3)
        if logarithmic and any(math.isfinite(value) for value in shown):
            from matplotlib.ticker import LogLocator, NullFormatter

            axes.set_yscale("log")
            # Matplotlib's own labels are mathematics, which an SVG with text in it shows as source.
            axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=7))
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.6g}")
            axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("step")
        axes.tick_params(axis="y", labelcolor=MUTED)
        return _svg(figure, title)


def columns(title: str, places: Sequence[int], values: Sequence[float], *, edge: float | None = None) -> str:
    """Shares by exponent of 2 as an SVG element; those below `edge` have the colour of something wrong.

    Raises PackageError without matplotlib.
    """
    with _figure(title, 2.2) as (figure, axes):
        colours = [BAD if edge is not None and place < edge else FIRST for place in places]
        axes.bar(places, values, width=0.9, color=colours)
        if edge is not None and places:
            axes.axvline(edge - 0.5, color=BAD, linewidth=1.2, linestyle="--")
        axes.set_xlabel("exponent of 2")
        axes.tick_params(axis="y", labelcolor=MUTED)
        axes.grid(False, axis="x")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        return _svg(figure, title)


class _figure:  # noqa: N801 - reads as a function in a `with`
    """Context of a figure with one pair of axes in Demi's style, without global state."""

    def __init__(self, title: str, height: float) -> None:
        self._title, self._height = title, height

    def __enter__(self) -> tuple[Any, Any]:
        try:
            import matplotlib
            from matplotlib.figure import Figure
        except ImportError as error:
            raise missing_package("matplotlib", "report") from error
        style: Any = _STYLE | {"svg.hashsalt": self._title}
        self._context = matplotlib.rc_context(style)
        self._context.__enter__()
        figure = Figure(figsize=(WIDTH, self._height), layout="constrained")
        return figure, figure.add_subplot()

    def __exit__(self, *details: Any) -> None:
        self._context.__exit__(*details)


def _svg(figure: Any, title: str) -> str:
    """Return the figure as an SVG element with a label for screen readers, unique ids and the page's colours."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg ") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    prefix = re.sub(r"\W+", "-", title.lower())
    text = re.sub(r'\bid="', f'id="{prefix}-', text)
    text = re.sub(r'(url\(|href=")#', rf"\g<1>#{prefix}-", text)
    for colour, name in _VARIABLES.items():
        text = text.replace(colour, f"var(--{name})")
    return text.replace("<svg ", f'<svg role="img" aria-label="{html.escape(title)}" ', 1)


def _short(label: str) -> str:
    if len(label) <= LONGEST:
        return label
    half = LONGEST // 2
    return f"{label[: half - 1]}…{label[-half:]}"
