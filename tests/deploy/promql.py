"""Metrics and labels that a PromQL expression reads."""

from __future__ import annotations

import re
from typing import Any

import promql_parser

VARIABLES = {"$__rate_interval": "5m", "$model": ".*", "$version": ".*"}
"""Grafana's variables, and what may stand in their place."""


def read(expression: str) -> list[Any]:
    """Return the vector selectors of an expression; raise ValueError if it is not PromQL."""
    for name, value in VARIABLES.items():
        expression = expression.replace(name, value)
    found: list[Any] = []
    _collect(promql_parser.parse(expression), found)
    return found


def metrics(expression: str) -> set[str]:
    """The names of the metrics that an expression reads."""
    return {selector.name for selector in read(expression)}


def labels(expression: str) -> dict[str, set[str]]:
    """For every metric that an expression reads: the labels it selects by, or groups by."""
    grouped = {name.strip() for names in re.findall(r"\bby \(([^)]*)\)", expression) for name in names.split(",")}
    return {
        selector.name: {matcher.name for matcher in selector.matchers.matchers} | grouped
        for selector in read(expression)
    }


def _collect(node: Any, found: list[Any]) -> None:
    if isinstance(node, promql_parser.VectorSelector):
        found.append(node)
    elif isinstance(node, promql_parser.MatrixSelector):
        found.append(node.vector_selector)
    else:
        for child in ("expr", "lhs", "rhs", "param"):
            if (inner := getattr(node, child, None)) is not None:
                _collect(inner, found)
        for argument in getattr(node, "args", ()) or ():
            _collect(argument, found)
