"""A headless browser that reports how an HTML page is rendered."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine: apt-get install chromium")

FRAME = """<!doctype html><meta charset="utf-8"><iframe id="page" width="{width}" height="900" srcdoc="{page}"></iframe>
<script>
document.getElementById("page").onload = event => {{
  const frame = event.target.contentWindow, page = frame.document;
  const seen = {{
    width: page.documentElement.clientWidth,
    reach: page.documentElement.scrollWidth,
    text: page.body.innerText,
    charts: [...page.querySelectorAll("svg")].map(svg => [svg.getBoundingClientRect().width, svg.getBoundingClientRect().height]),
    names: [...page.querySelectorAll("svg")].map(svg => svg.getAttribute("aria-label")),
    letters: [...page.querySelectorAll("svg text")].map(text => text.getBoundingClientRect().height),
    scripts: page.scripts.length,
    ids: [...page.querySelectorAll("[id]")].map(element => element.id),
    requests: frame.performance.getEntriesByType("resource").map(entry => entry.name),
    ink: frame.getComputedStyle(page.body).color,
    paper: frame.getComputedStyle(page.body).backgroundColor,
  }};
  const result = document.createElement("pre");
  result.id = "seen";
  result.textContent = JSON.stringify(seen);
  document.body.append(result);
}};
</script>"""


@dataclass(frozen=True)
class Seen:
    """A rendered page: sizes in pixels, and the errors in the browser's console."""

    width: int
    reach: int
    """Width of the content: if it exceeds `width`, the page scrolls sideways."""
    text: str
    charts: list[list[float]]
    names: list[str]
    letters: list[float]
    """Heights of the charts' text."""
    scripts: int
    ids: list[str]
    requests: list[str]
    ink: str
    paper: str
    complaints: list[str]


def look(page: str, folder: Path, width: int = 1200, *, dark: bool = False) -> Seen:
    """Open a page in a frame so many pixels wide, with no network, and say how it came out."""
    framed = folder / "framed.html"
    framed.write_text(FRAME.format(width=width, page=html.escape(page)), encoding="utf-8")
    command = [
        str(CHROMIUM),
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--window-size=1400,1000",
    ]
    command += [
        f"--user-data-dir={folder / 'browser'}",
        "--host-resolver-rules=MAP * ~NOTFOUND",
        "--enable-logging=stderr",
    ]
    command += [f"--blink-settings=preferredColorScheme={0 if dark else 1}", "--virtual-time-budget=5000", "--dump-dom"]
    done = subprocess.run([*command, framed.as_uri()], capture_output=True, text=True, timeout=120)
    found = re.search(r'<pre id="seen">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, f"the browser shows nothing: {done.stderr[-2000:]}"
    complaints = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return Seen(**json.loads(html.unescape(found[1])), complaints=complaints)
