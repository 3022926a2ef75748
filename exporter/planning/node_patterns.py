"""Patterns that select nodes: node names, globs or operator types.

A node's exact name is matched literally, even with brackets and stars in it: a pattern is a glob only if no node has
that name.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

import onnx_ir as ir

from demi.errors import InputError


def named_nodes(model: ir.Model, patterns: Sequence[str]) -> dict[str, str]:
    """Return the nodes that patterns match, by name, each with the first pattern that matches it."""
    nodes = list(model.graph.all_nodes())
    own = {node.name or "" for node in nodes}
    found: dict[str, str] = {}
    for pattern in dict.fromkeys(patterns):
        for node in nodes:
            if _fits(node, pattern, own):
                found.setdefault(node.name or "", pattern)
    return found


def forced_nodes(model: ir.Model, force_half: Sequence[str], keep_fp32: Sequence[str] = ()) -> frozenset[str]:
    """Return the nodes that `force_half` matches and `keep_fp32` does not; a node's own name wins over other patterns."""
    if not force_half:
        return frozenset()
    kept = named_nodes(model, keep_fp32)
    return frozenset(name for name in named_nodes(model, force_half) if name in force_half or name not in kept)


def check_controls(model: ir.Model, keep_fp32: Sequence[str], force_half: Sequence[str]) -> None:
    """Raise InputError for a pattern that matches no node, and for a node that is requested in both FP32 and half.

    A node's own name is more specific than a glob or an operator type, and wins; two of a kind contradict each other.
    """
    _check_fit(model, keep_fp32, "--keep-fp32")
    _check_fit(model, force_half, "--force-half")
    kept, forced = named_nodes(model, keep_fp32), named_nodes(model, force_half)
    for name in kept.keys() & forced.keys():
        if (name in keep_fp32) == (name in force_half):
            raise InputError(
                f"`{name}` is requested in FP32 (`--keep-fp32 {kept[name]}`) and in half (`--force-half {forced[name]}`)",
                hint="leave one of the two out, or name the node itself in the one that should win",
            )


def _check_fit(model: ir.Model, patterns: Sequence[str], flag: str) -> None:
    """Raise InputError, with similar names, for a pattern that matches no node: it is probably a typo."""
    fitting: Mapping[str, Mapping[str, str]] = {pattern: named_nodes(model, [pattern]) for pattern in patterns}
    for pattern in (pattern for pattern, found in fitting.items() if not found):
        known = dict.fromkeys(text for node in model.graph.all_nodes() for text in (node.name, node.op_type) if text)
        near = difflib.get_close_matches(pattern, known, 3) or list(known)[:3]
        raise InputError(
            f"`{flag} {pattern}` matches no node of the model",
            hint=f"did you mean {' or '.join(f'`{name}`' for name in near)}? plan.json has every name; "
            "--no-optimize keeps those of fused nodes",
        )


def _fits(node: ir.Node, pattern: str, own: set[str]) -> bool:
    """Return whether a pattern matches a node; `own` holds every node's name, which are not globs."""
    name = node.name or ""
    return pattern in (name, node.op_type) or (pattern not in own and fnmatchcase(name, pattern))
