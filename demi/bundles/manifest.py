"""The manifest: the small file that describes a bundle and is read first.

It is untrusted, like everything in a bundle: unknown fields and schema numbers are refused, and file names must be
relative paths below the bundle's folder.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from demi.accuracy.budget import Budget
from demi.accuracy.varying import STEADY, Varying
from demi.errors import BundleError
from demi.tensors import TensorSpec

SCHEMA = 1

MODEL = "model.onnx"
REFERENCE = "reference.onnx"
PLAN = "plan.json"
RANGES = "ranges.json"
ACCURACY = "accuracy.json"
REPORT = "report.html"
GOLDEN = "golden.npz"
RESCALE = "rescale.json"
PROCESSING = "processing.json"
TOKENIZER = "tokenizer.json"
TEXTS = "texts.npz"
ENCODER = "encoder"
"""The folder of the bundle with the encoder, in the bundle of its decoder."""
MANIFEST = "manifest.json"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True, slots=True)
class PadSpec:
    """Padding by which requests of different lengths may share a run: the free axes to pad, and the values to pad with.

    `values` holds the pad value of every input with such an axis: pad ids, or 0 for a mask. It guarantees that padding
    changes no output except in the padded rows and columns themselves.
    """

    axes: tuple[str, ...] = ()
    values: dict[str, int | float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class BatchProof:
    """FP32 runs that show that no row depends on the others: each row alone and in batches."""

    sizes: tuple[Annotated[int, Meta(ge=1)], ...]
    """Batch sizes of the runs, ascending."""
    rows: Annotated[int, Meta(ge=2)]
    """Number of different rows."""
    runs: Annotated[int, Meta(ge=1)]
    difference: float
    """The largest relative L2 between a row's outputs alone and in a batch."""
    influence: float = 0.0
    """The largest relative L2 between a row's outputs in two batches that differ in the other rows only."""
    padded: bool = False
    """True if there were rows of different lengths, padded as `pad` describes."""


@dataclass(frozen=True, slots=True)
class BatchSpec:
    """Rules for batches: joining requests along axis 0, the most rows of a run, and the axes that may be padded.

    Without a `proof`, rows are neither joined nor split, even if the batch axis is `free`; `why_not` gives the reason.
    """

    free: bool
    max_size: Annotated[int, Meta(ge=1)] = 32
    pad: PadSpec = field(default_factory=PadSpec)
    proof: BatchProof | None = None
    why_not: str = ""

    @property
    def joins(self) -> bool:
        """Return whether requests may share a run, and a large request may be split."""
        return self.free and self.proof is not None

    @property
    def reason(self) -> str:
        """Return why requests are not joined; empty where they are. Bundles of older versions have no proof."""
        unproved = "the bundle holds no proof that its rows do not depend on each other; export the model again"
        return "" if self.joins else self.why_not or unproved


@dataclass(frozen=True, slots=True)
class FileEntry:
    """Size and SHA-256 of one file of the bundle."""

    bytes: Annotated[int, Meta(ge=0)]
    sha256: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
    """In hexadecimal; the cache of downloads names files by it."""


@dataclass(frozen=True, slots=True)
class Provenance:
    """Origin of a bundle, complete enough to export it again."""

    created: str
    """UTC, ISO 8601."""
    source: str
    """File name of the source model (no folder: bundles travel)."""
    source_sha256: str
    tools: dict[str, str]
    """Package name to version."""
    samples: str
    """Description of the samples that the accuracy was measured on."""
    proven: bool = True
    """False where the model was not run, so that its accuracy is unknown (`demi export --no-run`)."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """Description of a bundle: tensors, precision, budget, files and their origin."""

    schema: int
    name: str
    version: Annotated[int, Meta(ge=1)]
    precision: Annotated[str, Meta(pattern="^(fp16|bf16)$")]
    """`fp16` or `bf16`: the half type of the mixed model."""
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    batch: BatchSpec
    budget: Budget
    provenance: Provenance
    files: dict[str, FileEntry] = field(default_factory=dict)
    input_ranges: dict[str, tuple[float, float]] = field(default_factory=dict)
    """The smallest and the largest finite value of every float input in the samples, by name."""
    varying: Varying = STEADY
    """The outputs that differ from run to run in FP32 itself."""
    rescaled: bool = False
    """True if constants of `model.onnx` are the source's, scaled by powers of two, as `rescale.json` certifies."""

    @property
    def proven(self) -> bool:
        """Return whether the half model was run beside FP32 at export, and met its budget."""
        return self.provenance.proven

    @property
    def has_reference(self) -> bool:
        """Return whether the FP32 model is in the bundle."""
        return REFERENCE in self.files


def check_model_name(name: str) -> str:
    """Return `name`. Raises BundleError when it cannot name a model, since it becomes a folder and a part of URLs."""
    if not _NAME.fullmatch(name):
        raise BundleError(
            f"`{name}` cannot be a model name, which becomes a folder and a part of URLs",
            hint="use ASCII letters, digits, `.`, `_` and `-`, starting with a letter or digit, at most 128: -o models/NAME",
        )
    return name


def name_of_file(stem: str) -> str:
    """Return a model name for a file name: spaces and signs become `-`; a name with non-ASCII letters is unchanged."""
    legal = re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._")[:128]
    lost = any(sign.isalnum() and not sign.isascii() for sign in stem)
    return stem if lost or not legal else legal


def encode(manifest: Manifest) -> bytes:
    """Return the manifest as indented JSON."""
    return msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"


def decode(data: bytes, where: str) -> Manifest:
    """Return a manifest from its bytes. Raises BundleError, naming the field that is wrong."""
    try:
        raw: Any = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BundleError(
            f"the manifest is not valid JSON: {error}", where=where, hint="export the model again"
        ) from error
    schema = raw.get("schema") if isinstance(raw, dict) else None
    if schema != SCHEMA:
        raise BundleError(
            f"the manifest has schema {schema!r}; this Demi reads schema {SCHEMA}",
            where=where,
            hint="export the model again, or use the version of Demi that wrote it",
        )
    try:
        manifest = msgspec.convert(raw, Manifest)
    except msgspec.ValidationError as error:
        raise BundleError(f"the manifest is not valid: {error}", where=where, hint="export the model again") from error
    if unknown := _unknown_field(raw, msgspec.to_builtins(manifest)):
        raise BundleError(
            f"the manifest has an unknown field: {unknown}",
            where=where,
            hint="export the model again, or use the version of Demi that wrote it",
        )
    check_model_name(manifest.name)
    for name in manifest.files:
        _check_file_name(name, where)
    if MODEL not in manifest.files:
        raise BundleError(f"the manifest does not list `{MODEL}`", where=where, hint="export the model again")
    return manifest


def _unknown_field(raw: Any, known: Any, path: str = "$") -> str | None:
    """Return the path of the first field that no class here has: msgspec ignores unknown fields of dataclasses."""
    if isinstance(raw, dict):
        for key, value in raw.items():
            if key not in known:
                return f"{path}.{key}"
            if found := _unknown_field(value, known[key], f"{path}.{key}"):
                return found
    elif isinstance(raw, list):
        for index, (item, match) in enumerate(zip(raw, known, strict=True)):
            if found := _unknown_field(item, match, f"{path}[{index}]"):
                return found
    return None


def _check_file_name(name: str, where: str) -> None:
    path = PurePosixPath(name)
    if not name or path.is_absolute() or ".." in path.parts or "\\" in name or str(path) != name:
        raise BundleError(
            f"the manifest lists a file outside the bundle: `{name}`",
            where=where,
            hint="do not use this bundle: export the model again",
        )
