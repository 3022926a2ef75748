"""Self-contained HTML pages: one script that sorts tables, no network, all text escaped. The only module that imports Jinja.

The page's own policy allows this script by its digest and no other.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import importlib.util
import math
from pathlib import Path
from typing import Any

from demi.errors import missing_package

TEMPLATES = Path(__file__).parent


def require_report_packages() -> None:
    """Raise PackageError, naming the extra to install, when matplotlib or Jinja is missing."""
    for package in ("matplotlib", "jinja2"):
        if importlib.util.find_spec(package) is None:
            raise missing_package(package, "report")


def render(template: str, charts: dict[str, str], **values: Any) -> str:
    """Render one of the templates beside this module; `charts` are SVG elements, all other values are escaped.

    Raises PackageError when Jinja is not installed.
    """
    environment = _environment()
    script = (TEMPLATES / "sort.js").read_text(encoding="utf-8")
    svg = {name: safe(chart) for name, chart in charts.items()}  # matplotlib has escaped the labels
    page = environment.get_template(template)
    return str(page.render(charts=svg, script=safe(script), script_hash=digest(script), **values))


def safe(text: str) -> Any:
    """Mark markup as safe: made by this package, with every name in it escaped. Raises PackageError without Jinja."""
    _environment()
    from markupsafe import Markup

    return Markup(text)


def digest(script: str) -> str:
    """Return a script's digest as a Content-Security-Policy names it."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


@functools.cache
def _environment() -> Any:
    try:
        import jinja2
    except ImportError as error:
        raise missing_package("jinja2", "report") from error
    loader = jinja2.FileSystemLoader(TEMPLATES)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"number": number, "bytes": byte_count, "percent": percent}
    return environment


def number(value: float | None, digits: int = 3) -> str:
    """Format a number with so many significant digits; `-` for None."""
    if value is None:
        return "-"
    return f"{value:.{digits}g}" if math.isfinite(value) else ("∞" if value > 0 else "-∞" if value < 0 else "NaN")


def percent(value: float | None) -> str:
    """Format a share in percent; `-` for None."""
    return "-" if value is None else f"{value:.1%}"


def byte_count(value: int | None) -> str:
    """Format a byte count in MiB or KiB; `-` for None."""
    if value is None:
        return "-"
    return f"{value / 2**20:,.1f} MiB" if abs(value) >= 2**20 else f"{value / 2**10:,.1f} KiB"
