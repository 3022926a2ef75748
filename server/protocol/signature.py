"""Inputs, outputs and batching of a served model, as needed to read requests and to describe the model."""

from __future__ import annotations

import math
from dataclasses import dataclass

from demi.bundles.manifest import BatchSpec
from demi.errors import BundleError, TensorError
from demi.tensors import TensorSpec


@dataclass(frozen=True, slots=True)
class Signature:
    """Inputs, outputs and batching of one model. If `batch.free`, axis 0 of every tensor is the batch axis.

    The server batches requests whenever `batch.free` is set, so the creator must have checked the proof in the bundle.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    batch: BatchSpec
    raw: tuple[TensorSpec, ...] = ()
    """Texts, images or sounds that may be sent instead of the inputs, one element a row."""
    answers: tuple[TensorSpec, ...] = ()
    """Tensors made of the outputs; returned by default for raw inputs."""

    @property
    def takes_files(self) -> bool:
        """Return whether the raw input is the content of files: images or sound."""
        return bool(self.raw) and self.raw[0].name != "text"

    def is_raw(self, name: str) -> bool:
        """Return whether an input is a raw one."""
        return any(spec.name == name for spec in self.raw)

    def is_file(self, name: str) -> bool:
        """Return whether an input is the content of files."""
        return self.takes_files and self.is_raw(name)

    def is_answer(self, name: str) -> bool:
        """Return whether an output is made of the model's outputs."""
        return any(spec.name == name for spec in self.answers)

    @property
    def max_batch_size(self) -> int:
        """The most rows per run; 0 for a model without a batch axis, as in the protocol."""
        return self.batch.max_size if self.batch.free else 0

    @property
    def joins(self) -> bool:
        """Return whether requests can be batched, and large ones split over several runs."""
        return self.batch.free

    @property
    def only_floats(self) -> bool:
        """Return whether every input is of a float dtype."""
        return all(spec.dtype.is_float for spec in (*self.inputs, *self.raw))

    @property
    def batching(self) -> str:
        """Describe batching in words, or why it is off."""
        return f"up to {self.batch.max_size} rows a run" if self.joins else f"off: {self.batch.why_not or 'no proof'}"

    @property
    def has_rows(self) -> bool:
        """Return whether axis 0 of every tensor counts rows, by its shared name; rows may still depend on each other.

        One-dimensional tensors do not count as rows.
        """
        names = {spec.shape[0] if len(spec.shape) > 1 else None for spec in (*self.inputs, *self.outputs)}
        return self.batch.free or (len(names) == 1 and isinstance(names.pop(), str))

    def dims(self, spec: TensorSpec) -> list[int]:
        """Return a tensor's shape for the model configuration: without the batch axis, -1 for a dynamic one."""
        return spec.wire_shape[1:] if self.batch.free else spec.wire_shape

    def input(self, name: str) -> TensorSpec:
        """Return the input called `name`; TensorError lists the existing ones."""
        return _named((*self.inputs, *self.raw), name, "input")

    def output(self, name: str) -> TensorSpec:
        """Return the output called `name`; TensorError lists the existing ones."""
        return _named((*self.outputs, *self.answers), name, "output")

    def check_input_shape(self, spec: TensorSpec, shape: tuple[int, ...]) -> None:
        """Raise TensorError unless an input may have this shape: rank, dimensions and rows.

        A request with more rows than fit into one run is split, if the model can be batched. But rows without elements are
        refused beyond that limit: a tiny body could otherwise cause any number of runs.
        """
        spec.check_shape(shape)
        if not self.batch.free or shape[0] <= self.batch.max_size:
            return
        if math.prod(shape) == 0:
            raise TensorError(
                f"input `{spec.name}` has {shape[0]} rows, expected at most {self.batch.max_size}",
                hint="send fewer rows in one request",
            )

    def check_batch_axis(self) -> None:
        """Raise BundleError if a bundle declares a batch axis that one of its tensors lacks."""
        for spec in (*self.inputs, *self.outputs) if self.batch.free else ():
            if not spec.shape or isinstance(spec.shape[0], int):
                raise BundleError(
                    f"the manifest declares axis 0 as the batch axis, but axis 0 of `{spec}` is not dynamic",
                    hint="export the model again",
                )


def _named(specs: tuple[TensorSpec, ...], name: str, kind: str) -> TensorSpec:
    for spec in specs:
        if spec.name == name:
            return spec
    raise TensorError(f"unknown {kind} `{name}`", hint=f"the model's {kind}s are " + ", ".join(map(str, specs)))
