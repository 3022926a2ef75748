"""The samples that an export is measured on: the user's, else the source's examples, else drawn ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from demi.calibration.samples import Samples, draw_samples, fit_samples, split_rows
from demi.errors import SampleError
from demi.exporter.sources.index_limits import index_limits
from demi.exporter.sources.options import Source, SourceKind, SourceOptions
from demi.tensors import TensorSpec

GOLDEN_ROWS = 8
"""Most rows of one set of samples; larger sets are split, since a bundle keeps whole sets as golden inputs."""


EXAMPLES = "the examples in the source file"
"""Origin of samples that come from the source, as a `.pt2` file stores them: usually one, with a row or two."""


def gather_samples(specs: Sequence[TensorSpec], source: Source, options: SourceOptions, origin: str) -> Samples:
    """Return the user's samples, else the examples in the source, else drawn ones (marked as such)."""
    if options.samples:
        try:
            found = _in_rows(fit_samples(options.samples, specs, options.drawn_from or origin), specs)
            return replace(found, drawn=bool(options.drawn_from))
        except SampleError as error:
            raise _with_way_out(error, source.kind) from error
    if source.examples and not options.inputs:
        return _in_rows(fit_samples(source.examples, specs, EXAMPLES), specs)
    return draw_samples(specs, options.seed, index_limits=index_limits(source.model))


_FIXED_BY_PROGRAM = (
    "the program fixes that axis: free it with dynamic_shapes in torch.export.export, or export from the module "
    "itself, where `--input` says which axes are free"
)
_FIXED_BY_EXPORT = "its export fixes that axis; `--input` says which are free, as in --input x:float32[batch,length]"
FIXED_AXIS = {
    SourceKind.ONNX: "the file fixes that axis: write it with the axis free, or give samples of this size",
    SourceKind.PROGRAM: _FIXED_BY_PROGRAM,
    SourceKind.TORCHSCRIPT: _FIXED_BY_PROGRAM,
    SourceKind.TRANSFORMERS: _FIXED_BY_EXPORT,
    SourceKind.SAFETENSORS: _FIXED_BY_EXPORT,
    SourceKind.PICKLE: _FIXED_BY_EXPORT,
}
"""The hint for samples of another shape than the model's, by the kind of source."""


def _with_way_out(error: SampleError, kind: SourceKind) -> SampleError:
    if " has shape " not in error.message:
        return error
    return SampleError(error.message, where=error.where, hint=FIXED_AXIS[kind])


def _in_rows(samples: Samples, specs: Sequence[TensorSpec]) -> Samples:
    feeds = tuple(part for whole in samples.feeds for part in split_rows(whole, specs, GOLDEN_ROWS))
    return Samples(feeds, samples.origin, samples.drawn)
