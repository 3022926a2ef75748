"""Check torch.export programs before PyTorch reads them, since reading one can run code in it.

PyTorch unpickles, loads compiled libraries, calls whatever a node names below `torch`, and evaluates expressions and
names as Python. What `torch.export.save` writes for a model needs none of that beyond tensors, operators and
arithmetic.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from demi.exporter.pytorch.allowed_operators import is_plain_operator
from demi.exporter.pytorch.archive_records import records
from demi.exporter.pytorch.size_expressions import unsafe_part

COMPILED = "aotinductor"
"""The folder of compiled libraries, which run when they are loaded."""

OBJECTS = ("opaque_obj_", "custom_obj_")
"""Prefixes of the records of pickled Python objects and of custom classes."""

_IDENTIFIER = re.compile(r"[\w.]*")
_PATH = re.compile(r"[\w.:/@+\- ]*")
"""Names of parameters and modules: PyTorch writes them between quotes into code."""


def unsafe_record(path: Path) -> str | None:
    """Return what in a torch.export program could run code; None where nothing does.

    Pickled tensors are not checked: they are loaded with `weights_only`. Raises what the readers raise.
    """
    for record in records(path):
        if COMPILED in record.name.split("/"):
            return f"`{record.name}` is part of a compiled library"
        if record.name.rsplit("/", 1)[-1].startswith(OBJECTS):
            return f"`{record.name}` is a pickled Python object"
        if record.name.endswith(".json") and (why := unsafe_value(json.loads(record.read()))):
            return f"`{record.name}` holds {why}"
    return None


def unsafe_value(document: Any) -> str | None:
    """Return the first part of a decoded program, at any depth, that is more than a graph of operators."""
    for key, value in _leaves(document):
        if (check := CHECKS.get(key)) and (why := check(value)):
            return why
    return None


def _leaves(document: Any) -> Iterator[tuple[str, Any]]:
    """Yield every key with a value that is not an object, and every item of a list under the list's key."""
    left: list[tuple[str, Any]] = [("", document)]
    while left:
        key, value = left.pop()
        if isinstance(value, dict):
            left += value.items()
        elif isinstance(value, list):
            left += [(key, item) for item in value]
        else:
            yield key, value


def _operator(value: Any) -> str | None:
    return None if value is None or is_plain_operator(str(value)) else f"a node that calls {str(value)[:80]!r}"


def _expression(value: Any) -> str | None:
    return None if value is None else unsafe_part(str(value))


def _identifier(value: Any) -> str | None:
    return _unless(_IDENTIFIER, value)


def _parameter(value: Any) -> str | None:
    return _unless(_PATH, value)


def _unless(pattern: re.Pattern[str], value: Any) -> str | None:
    return None if value is None or pattern.fullmatch(str(value)) else f"the name {str(value)[:80]!r}"


def _object(value: Any) -> str | None:
    return "a pickled Python object" if str(value).rsplit("/", 1)[-1].startswith(OBJECTS) else None


def _structure(value: Any) -> str | None:
    """Check how arguments are nested: the structure may name classes to import, and keys that become code."""
    if value is None or value == "":
        return None
    left: list[Any] = [json.loads(str(value))]
    while left:
        item = left.pop()
        if isinstance(item, dict):
            if item.keys() & {"__enum__", "default_factory_module"}:
                return "a class to import"
            left += [*item.keys(), *item.values()]
        elif isinstance(item, list):
            left += item
        elif isinstance(item, str) and item[:1] in ("[", "{", '"'):
            left.append(json.loads(item))  # a context is JSON within JSON
        elif isinstance(item, str) and (why := _parameter(item)):
            return why
    return None


CHECKS: dict[str, Callable[[Any], str | None]] = {
    "target": _operator,
    "as_operator": _operator,
    "expr_str": _expression,
    "guards_code": _expression,
    "in_spec": _structure,
    "out_spec": _structure,
    "name": _identifier,
    "as_name": _identifier,
    "forward_arg_names": _identifier,
    "field_names": _identifier,
    "user_input_name": _identifier,
    "class_fqn": _identifier,
    "fqn": _parameter,
    "parameter_name": _parameter,
    "buffer_name": _parameter,
    "tensor_constant_name": _parameter,
    "custom_obj_name": _parameter,
    "path_name": _object,
}
"""Values that PyTorch turns into code, by key, with the check for each."""
