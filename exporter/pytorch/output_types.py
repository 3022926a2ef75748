"""Types that a `.pt2` returns, known only where it was written: a dataclass, or one of transformers' outputs.

torch.export stores their names and not their code, and reads a file only where they are registered. Nothing is imported
for the sake of a name in a file: a stand-in takes each unknown one, and gives a dict of its fields.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from torch.utils import _pytree as pytree

from demi.exporter.pytorch.archive_records import records


def register_unknown_types(path: Path) -> None:
    """Register a stand-in for each type in a `.pt2` that this process does not know."""
    for name in sorted(set(_named_types(path)) - set(pytree.SERIALIZED_TYPE_TO_PYTHON_TYPE)):
        stand_in = type("Fields", (dict,), {})
        pytree._register_pytree_node(
            stand_in,
            lambda fields: (list(fields.values()), list(fields)),
            _with_names,
            serialized_type_name=name,
            to_dumpable_context=json.dumps,
            from_dumpable_context=json.loads,
        )


def _with_names(values: Iterable[Any], context: Any) -> Any:
    """Return fields by name: `context` holds their names, alone or beside those of fields that are None."""
    values = list(values)
    names = context[0] if isinstance(context, list) and context and isinstance(context[0], list) else context
    fits = isinstance(names, list) and len(names) == len(values) and all(isinstance(each, str) for each in names)
    return dict(zip(names, values, strict=True)) if fits else tuple(values)


def _named_types(path: Path) -> Iterator[str]:
    """Yield the names of the types in the signatures of a `.pt2`; none from a file that is no such archive."""
    try:
        for record in records(path):
            if record.name.startswith("models/") and record.name.endswith(".json"):
                yield from _types_in(json.loads(record.read()))
    except (OSError, ValueError, zipfile.BadZipFile):  # which torch.export reports in its own words
        return


def _types_in(program: Any) -> Iterator[str]:
    calls = program.get("graph_module", {}).get("module_call_graph", []) if isinstance(program, dict) else []
    for call in calls:
        signature = call.get("signature") or {}
        for spec in ("in_spec", "out_spec"):
            if isinstance(text := signature.get(spec), str):
                yield from _types_of(json.loads(text))


def _types_of(spec: Any) -> Iterator[str]:
    if isinstance(spec, list):
        for each in spec:
            yield from _types_of(each)
    elif isinstance(spec, dict):
        if isinstance(spec.get("type"), str):
            yield spec["type"]
        yield from _types_of(spec.get("children_spec", []))
