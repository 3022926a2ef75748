"""Ids that inputs look up in constant tables: OpenVINO answers with zeros for an id beyond the table, without an error.

Other runtimes report such an id, so that a client can correct it. The tables are found in the graph: a Gather from a
constant whose indices are an input, or come from one through operators that keep every value.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from demi.errors import InferenceError
from demi.tensors import Feeds

KEEP_VALUES = frozenset({"Convert", "Reshape", "Unsqueeze", "Squeeze", "Transpose"})
"""Operators, by OpenVINO's names, whose output holds exactly the values of their first input."""


@dataclass(frozen=True, slots=True)
class Table:
    """A table with so many rows, in which `node` looks up every value of the input `name`."""

    name: str
    node: str
    rows: int


def tables_of(graph: Any) -> tuple[Table, ...]:
    """Return the tables that inputs of a graph are looked up in."""
    found = (_table(operation) for operation in graph.get_ordered_ops() if operation.get_type_name() == "Gather")
    return tuple(table for table in found if table is not None)


def check_ids(tables: Sequence[Table], feeds: Feeds) -> None:
    """Raise InferenceError, in ONNX Runtime's words, for an id beyond its table; negative ids count from the end."""
    for table in tables:
        ids = feeds[table.name]
        if not ids.size:
            continue
        low, high = int(ids.min()), int(ids.max())
        if low < -table.rows or high >= table.rows:
            raise InferenceError(
                f"while running Gather node. Name:'{table.node}': indices element out of data bounds, "
                f"idx={high if high >= table.rows else low} must be within the inclusive range [{-table.rows},{table.rows - 1}]"
            )


def _table(gather: Any) -> Table | None:
    data, indices, axis = (_origin(gather, place) for place in range(3))
    if indices.get_type_name() != "Parameter" or axis.get_type_name() != "Constant":
        return None
    if data.get_type_name() != "Constant":
        return None
    size = data.output(0).get_partial_shape()[int(axis.get_data().reshape(-1)[0])]
    names = indices.output(0).get_names()
    return Table(min(names), gather.get_friendly_name(), size.get_length()) if names and size.is_static else None


def _origin(operation: Any, place: int) -> Any:
    """Return the node that made the values of an operation's input."""
    node = operation.input_value(place).get_node()
    while node.get_type_name() in KEEP_VALUES:
        node = node.input_value(0).get_node()
    return node
