"""The tokenizer of a source: of a transformers folder, as transformers itself builds it, or of a `tokenizer.json`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from demi.errors import SourceError, missing_package
from demi.processing.description import TextInput

MOST_BYTES = 256 << 20

OFFSET_POSITIONS = frozenset(
    {"roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "mpnet", "longformer", "data2vec-text", "ibert", "esm"}
)
"""Models whose positions start after the padding token's: they take fewer tokens than they have positions."""

NO_LIMIT = 1 << 24
"""`model_max_length` beyond this stands for none in transformers."""


def folder_tokenizer(folder: Path, *, pair: bool) -> tuple[TextInput, str]:
    """Return the description and the JSON of a folder's tokenizer, with the limits of its model.

    The JSON is that of the tokenizer which transformers builds, which may differ from the folder's file. Raises
    SourceError when there is none, or none that is fast.
    """
    tokenizer = load_tokenizer(folder)
    config, limits = _json(folder / "config.json"), _json(folder / "sentence_bert_config.json")
    types = "token_type_ids" if pair and "token_type_ids" in tokenizer.model_input_names else None
    text = TextInput(
        max_length=_longest(tokenizer, config, limits, folder),
        types=types,
        pair=pair,
        pad_id=tokenizer.pad_token_id or 0,
        pad_type=tokenizer.pad_token_type_id or 0,
        pad_side=tokenizer.padding_side,
        truncation_side=tokenizer.truncation_side,
        prompts=_prompts(folder),
    )
    return text, plain_json(tokenizer.backend_tokenizer.to_str())


def has_tokenizer(folder: Path) -> bool:
    """Return whether a folder holds a tokenizer in any of the usual forms."""
    names = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "tokenizer.model", "spiece.model")
    return any((folder / name).is_file() for name in names)


def load_tokenizer(folder: Path) -> Any:
    """Return transformers' own fast tokenizer of a folder; code in it is not run, and nothing is downloaded."""
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise missing_package("transformers", "examples") from error
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise SourceError(
            f"transformers cannot load the tokenizer: {_first_line(error)}",
            where=str(folder),
            hint="check the JSON files in the folder, or save it again with tokenizer.save_pretrained",
        ) from error
    if not getattr(tokenizer, "is_fast", False):
        raise SourceError(
            f"{type(tokenizer).__name__} is not a fast tokenizer, which has a tokenizer.json",
            where=str(folder),
            hint="export without --task to serve tensors, or convert the tokenizer to a fast one",
        )
    return tokenizer


def file_tokenizer(path: Path, max_tokens: int | None, *, pair: bool) -> tuple[TextInput, str]:
    """Return the description and the JSON of a `tokenizer.json`, or of the one in a folder.

    Padding, sides and the longest text are those in `tokenizer_config.json` next to it, where there is one.
    """
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise SourceError("there is no tokenizer.json", where=str(path), hint="name the file, or its folder")
    if file.stat().st_size > MOST_BYTES:
        raise SourceError(f"the tokenizer has more than {MOST_BYTES:,} bytes", where=str(file))
    try:
        source = file.read_text(encoding="utf-8")
        content = msgspec.json.decode(source, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise SourceError(f"the tokenizer cannot be read: {_first_line(error)}", where=str(file)) from error
    config = _json(file.parent / "tokenizer_config.json")
    longest = max_tokens or _limit(config.get("model_max_length"))
    if longest is None:
        raise SourceError(
            "nothing says how many tokens the model takes", where=str(file), hint="say it with --max-tokens 512"
        )
    padding = content.get("padding") or {}
    return (
        TextInput(
            max_length=longest,
            types="token_type_ids",
            pair=pair,
            pad_id=padding.get("pad_id", _id_of(content, config.get("pad_token"))),
            pad_type=padding.get("pad_type_id", 0),
            pad_side="left" if config.get("padding_side") == "left" else "right",
            truncation_side="left" if config.get("truncation_side") == "left" else "right",
        ),
        plain_json(source),
    )


def plain_json(source: str) -> str:
    """Return a tokenizer's JSON without truncation and padding, which are the server's."""
    content = msgspec.json.decode(source)
    content["truncation"] = content["padding"] = None
    return msgspec.json.encode(content).decode()


def _longest(tokenizer: Any, config: dict[str, Any], sentence: dict[str, Any], folder: Path) -> int:
    """Return the most tokens of a text: the smallest of the limits of the tokenizer, the model and the sentence model."""
    positions = _limit(config.get("max_position_embeddings"))
    if positions and config.get("model_type") in OFFSET_POSITIONS:
        positions -= (config.get("pad_token_id") or 0) + 1
    limits = [_limit(tokenizer.model_max_length), positions, _limit(sentence.get("max_seq_length"))]
    known = [limit for limit in limits if limit is not None and limit > 0]
    if not known:
        raise SourceError(
            "nothing in the folder says how many tokens the model takes",
            where=str(folder),
            hint="set model_max_length in tokenizer_config.json",
        )
    return min(known)


def _limit(value: object) -> int | None:
    return int(value) if isinstance(value, int | float) and 0 < value <= NO_LIMIT else None


def _prompts(folder: Path) -> dict[str, str]:
    """Return the prompts of a sentence-transformers model by name."""
    found = _json(folder / "config_sentence_transformers.json").get("prompts")
    return {str(name): text for name, text in found.items() if isinstance(text, str)} if isinstance(found, dict) else {}


def _id_of(content: dict[str, Any], token: object) -> int:
    """Return the id of the padding token among the added tokens, or 0."""
    name = token.get("content") if isinstance(token, dict) else token
    for added in content.get("added_tokens") or ():
        if isinstance(added, dict) and added.get("content") in ([name] if name else ["[PAD]", "<pad>"]):
            return int(added.get("id", 0))
    return 0


def _json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file, empty if there is no such file; SourceError if it is not an object."""
    if not path.is_file():
        return {}
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise SourceError(f"{path.name} cannot be read: {_first_line(error)}", where=str(path.parent)) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
