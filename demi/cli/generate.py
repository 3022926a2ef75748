"""`demi run` for a model that generates: the texts for texts or sounds."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from demi.cli.console import Console
from demi.errors import InputError

if TYPE_CHECKING:
    from demi.model import Model


def run_generator(model: Model, raw: Mapping[str, Sequence[str]], args: argparse.Namespace, console: Console) -> int:
    """Print a generated text for each input, one a line; with `--json` one document."""
    if args.output:
        raise InputError("generated texts are not arrays", where="-o", hint="leave out -o: the texts are printed")
    texts = model.generate(
        max_tokens=args.max_tokens,
        truncate=args.truncate,
        language=args.language,
        **{name: list(raw[name]) for name in raw},
    )
    if args.json:
        console.json({"bundle": str(model.path), "precision": model.precision, "texts": texts})
    else:
        for text in texts:
            console.data(text)
    return 0
