"""The stable forms that are worth it: tried on the nodes that exact rescaling leaves in FP32, and kept if fewer are left."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import onnx_ir as ir
import onnx_ir.passes.common as common

from demi.calibration.observe import observe
from demi.calibration.profile import RangeProfile
from demi.calibration.samples import Samples
from demi.calibration.sessions import session_for
from demi.errors import DemiError
from demi.exporter.passes.prepare import prepare
from demi.exporter.passes.proof import SAME, difference
from demi.exporter.rescaling.rescale import Rescaling
from demi.exporter.stable_forms.forms import FORMS, RULE, Form
from demi.runtime.options import FAITHFUL
from demi.tensors import Feeds

logger = logging.getLogger(__name__)

Rescale = Callable[[ir.Model, RangeProfile], Rescaling]
"""Exact rescaling of a model with its ranges, with the options of the export."""


@dataclass(frozen=True, slots=True)
class StableForm:
    """A rewriting that was kept. It is safe, and not exact: FP32 answers move by rounding."""

    form: str
    words: str
    """The expression and its form, for people."""
    nodes: tuple[str, ...]
    """The new nodes."""
    difference: float
    """The largest relative L2 between an output of the rewritten FP32 model and the original's, over the samples."""
    removed: int
    """Fewer nodes that stay FP32 for their range."""

    def __str__(self) -> str:
        return f"{self.words} (safe, not exact: FP32 answers move by {self.difference:.1e} relative L2)"


def with_stable_forms(
    model: ir.Model, samples: Samples, found: Rescaling, rescale: Rescale
) -> tuple[Rescaling, tuple[StableForm, ...]]:
    """Return the rescaling of a prepared FP32 model with the stable forms that leave fewer of its nodes in FP32.

    `found` is the rescaling without any. Each form is tried where one of the nodes that are left belongs to its
    expression, is rescaled again, and is dropped where that spares nothing, or where an output moves by more than
    `proof.SAME`. The model that is given is not changed.
    """
    best, base = found, model
    forms: list[StableForm] = []
    references: list[Feeds] = []
    for form in FORMS:
        candidate = _applied(form, base, best)
        if candidate is None:
            continue
        references = references or _answers(model, samples)
        tried = _tried(candidate, samples, references, rescale)
        if tried is None or len(tried[0].islands) >= len(best.islands):
            logger.info("stable form %s dropped: no node fewer stays FP32", form.name)
            continue
        again, moved = tried
        known = {name for each in forms for name in each.nodes}
        made = (node.name or "" for node in candidate.graph if node.metadata_props.get(RULE) == form.name)
        nodes = tuple(name for name in made if name not in known)
        forms.append(StableForm(form.name, form.words, nodes, moved, len(best.islands) - len(again.islands)))
        best, base = again, candidate
    return best, tuple(forms)


def _applied(form: Form, base: ir.Model, best: Rescaling) -> ir.Model | None:
    """Return a prepared copy with the form near the nodes that stay FP32; None where there is no such expression."""
    copy = base.clone()
    types = [(value.name, value.type, value.shape) for value in copy.graph.outputs]
    try:
        if not form.apply(copy, best.islands):
            return None
        common.RemoveUnusedNodesPass()(copy)
        for value, (name, kind, shape) in zip(copy.graph.outputs, types, strict=True):
            value.name, value.type, value.shape = name, kind, shape
        return prepare(copy)
    except (DemiError, ValueError, RuntimeError, TypeError, KeyError, AttributeError) as problem:
        logger.info("stable form %s dropped: %s", form.name, problem)
        return None


def _tried(
    candidate: ir.Model, samples: Samples, references: Sequence[Feeds], rescale: Rescale
) -> tuple[Rescaling, float] | None:
    """Return the rescaling of a rewritten model, and how far its FP32 answers moved; None where that is too far."""
    try:
        moved = difference(candidate, samples.feeds, references)
        if not moved <= SAME:
            return None
        return rescale(candidate, observe(candidate, samples)), moved
    except (DemiError, ValueError, RuntimeError) as problem:
        logger.info("stable form dropped: %s", problem)
        return None


def _answers(model: ir.Model, samples: Samples) -> list[Feeds]:
    with session_for(model, settings=FAITHFUL) as session:
        return [session.run(feeds) for feeds in samples.feeds]
