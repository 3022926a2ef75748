"""What a served model takes and gives: all that reading a request and describing a model need to know of it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from demi.bundles.manifest import BatchSpec
from demi.errors import BundleError, TensorError
from demi.tensors import TensorSpec


@dataclass(frozen=True, slots=True)
class Signature:
    """Inputs, outputs and batching of one model. Where `batch.free`, axis 0 of every tensor is the batch.

    `batch` is what a server acts on: whoever makes it has seen to it that `free` is proved.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    batch: BatchSpec

    @property
    def max_batch_size(self) -> int:
        """The most rows of one run; 0 for a model without a batch axis, as the protocol has it."""
        return self.batch.max_size if self.batch.free else 0

    @property
    def joins(self) -> bool:
        """Whether requests can share a run, and one with many rows be split over several."""
        return self.batch.free

    @property
    def batching(self) -> str:
        """How requests share runs, or why they do not, in words."""
        return f"up to {self.batch.max_size} rows a run" if self.joins else f"off: {self.batch.why_not or 'no proof'}"

    @property
    def has_rows(self) -> bool:
        """Whether the first axis of every tensor counts rows, also where these depend on each other: by its name.

        A vector is no column of rows.
        """
        names = {spec.shape[0] if len(spec.shape) > 1 else None for spec in (*self.inputs, *self.outputs)}
        return self.batch.free or (len(names) == 1 and isinstance(names.pop(), str))

    def dims(self, spec: TensorSpec) -> list[int]:
        """A tensor's shape as the model configuration writes it: without the batch axis, -1 for a free one."""
        return spec.wire_shape[1:] if self.batch.free else spec.wire_shape

    def input(self, name: str) -> TensorSpec:
        """The input called `name`; TensorError lists the ones there are."""
        return _named(self.inputs, name, "input")

    def output(self, name: str) -> TensorSpec:
        """The output called `name`; TensorError lists the ones there are."""
        return _named(self.outputs, name, "output")

    def check_input_shape(self, spec: TensorSpec, shape: tuple[int, ...]) -> None:
        """Raise TensorError unless an input of this shape fits: rank, dimensions and rows.

        A request may have more rows than a run where its rows can be split over several. Rows without any element
        would be split into runs that no body pays for, and are refused.
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
        """Raise BundleError where a bundle promises a batch axis that one of its tensors lacks."""
        for spec in (*self.inputs, *self.outputs) if self.batch.free else ():
            if not spec.shape or isinstance(spec.shape[0], int):
                raise BundleError(
                    f"the manifest says requests may be joined along axis 0, but `{spec}` has no free axis there",
                    hint="export the model again",
                )


def _named(specs: tuple[TensorSpec, ...], name: str, kind: str) -> TensorSpec:
    for spec in specs:
        if spec.name == name:
            return spec
    raise TensorError(f"unknown {kind} `{name}`", hint=f"the model's {kind}s are " + ", ".join(map(str, specs)))
