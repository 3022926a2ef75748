"""Rescaling alone, for any pipeline: `rescale` for models in memory, `rescale_file` for files of any size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import onnx
import onnx_ir as ir

from demi.arguments import require
from demi.calibration.observe import observe
from demi.calibration.rescaling.certificate import Certificate
from demi.calibration.samples import Samples, draw_samples, fit_samples
from demi.exporter.arguments import require_function, require_number, sample_sets
from demi.exporter.passes.containers import expose_tensors, read_proto, require_tensors
from demi.exporter.passes.declared_shapes import correct_shapes
from demi.exporter.passes.fill_types import fill_types
from demi.exporter.passes.prepare import prepare
from demi.exporter.reference import run_reference
from demi.exporter.rescaling.rescale import Rescaling, rescale_prepared
from demi.exporter.sources.index_limits import index_limits
from demi.exporter.sources.onnx_file import read_onnx, require_known_operators
from demi.exporter.write_model import check_model_target, write_model
from demi.progress import Step, silent
from demi.tensors import Feeds, TensorSpec


@dataclass(frozen=True, slots=True)
class Rescaled:
    """The result of `rescale`."""

    model: onnx.ModelProto
    """FP32, with the given model's answers to the last bit; the given model where nothing was changed."""
    certificate: Certificate | None
    """The constants that were multiplied, with their powers of two; None where nothing was."""
    fits: Mapping[str, str] = field(default_factory=dict)
    """Reason why each node fits half that did not, in words, by its name."""
    why_not: str = ""
    """Reason why nothing was changed though something overflows or vanishes; else empty."""


def rescale(
    model: onnx.ModelProto, samples: Sequence[Feeds] | None = None, *, seed: int = 0, step: Step = silent
) -> Rescaled:
    """Multiply constants of an FP32 ONNX model by powers of two so that its tensors fit FP16, and no answer changes.

    The result is an FP32 model for any pipeline: TensorRT, ONNX Runtime, other converters. `model` is not changed.

    Args:
        model: the ONNX model; for files see `rescale_file`.
        samples: sets of inputs, {input name: array}; the ranges are theirs. Without them inputs are drawn with `seed`,
            and the ranges are guesses.
        step: a function from the name of a step to a context manager around it, to show progress.

    Raises SampleError for samples that do not fit, ConversionError for a model that cannot be prepared, and InputError
    for an argument of another kind.
    """
    require(model, onnx.ModelProto, "model", "an onnx.ModelProto; files are for `rescale_file`")
    require_number(seed, "seed", 0, whole=True)
    require_function(step, "step", "a function from a name to a context manager")
    found, _ = _rescaled(read_proto(model).model, sample_sets(samples), "the samples given", seed, step)
    changed = ir.to_proto(found.model) if found else model
    return Rescaled(changed, found.certificate, found.fits, found.why_not)


def rescale_file(
    source: Path,
    target: Path,
    samples: Sequence[Feeds] = (),
    *,
    origin: str = "the samples given",
    seed: int = 0,
    step: Step = silent,
) -> tuple[Rescaling, Samples]:
    """Rescale an ONNX file of any size to another; returns what was changed, and the samples it was measured on.

    Constants in other files are scaled as they are written, one at a time; weights beyond 2 GiB go to `TARGET.data`. Where
    nothing is to be changed nothing is written. Raises as `rescale` does, SourceError for a file that cannot be read, and
    BundleError when the target cannot be written.
    """
    check_model_target(target)
    with step("reading the model"):
        model = read_onnx(source)
    found, used = _rescaled(model, samples, origin, seed, step)
    if found:
        with step("writing the model"):
            write_model(found.model, target)
    return found, used


def _rescaled(model: ir.Model, sets: Sequence[Feeds], origin: str, seed: int, step: Step) -> tuple[Rescaling, Samples]:
    """Run FP32 on the samples, observe the ranges, and rescale."""
    with step("preparing the graph"):
        exposed = expose_tensors(model, sets[0] if sets else None).model
        require_tensors(exposed)
        prepared = prepare(exposed)
        require_known_operators(
            prepared, hint="the model cannot be run here, and ranges cannot be measured without that"
        )
        fill_types(prepared)

    def gather(specs: Sequence[TensorSpec]) -> Samples:
        if sets:
            return fit_samples(sets, specs, origin)
        return draw_samples(specs, seed, index_limits=index_limits(prepared))

    with step("running FP32 on the samples"):
        reference = run_reference(prepared, gather, sets[0] if sets else None)
    correct_shapes(prepared, reference.outputs)
    with step("observing ranges"):
        profile = observe(prepared, reference.samples)
    with step("rescaling what leaves half's range"):
        return rescale_prepared(prepared, reference.samples.feeds, profile), reference.samples
