"""The manifest: the small file that is read first and says what a bundle holds.

It is untrusted input like everything else in a bundle: it is parsed strictly (unknown fields and unknown schema
numbers are refused), and file names in it may only be plain names below the bundle's folder.
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
MANIFEST = "manifest.json"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True, slots=True)
class PadSpec:
    """How requests of different lengths may share a run: the free axes that may be made longer, and with what.

    `values` names every input that has such an axis, and what its new elements are: pad ids, zeros for a mask. It is a
    promise that the elements added so change no output but in those rows and columns that they added.
    """

    axes: tuple[str, ...] = ()
    values: dict[str, int | float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class BatchProof:
    """What was tried in FP32 to see that no row depends on the others: each one alone, and in batches of several."""

    sizes: tuple[Annotated[int, Meta(ge=1)], ...]
    """How many rows the runs had, rising."""
    rows: Annotated[int, Meta(ge=2)]
    """How many different rows were tried."""
    runs: Annotated[int, Meta(ge=1)]
    difference: float
    """The largest relative L2 between a row's answers alone and in a batch."""
    influence: float = 0.0
    """The largest relative L2 between a row's answers in two batches that differ in nothing but the other rows."""
    padded: bool = False
    """Whether rows of different lengths were among them, padded as `pad` says."""


@dataclass(frozen=True, slots=True)
class BatchSpec:
    """Whether requests may be joined along axis 0, how many rows one run may hold, and which axes may be padded.

    Without a `proof` rows are neither joined nor split, whatever `free` says; `why_not` says why there is none.
    """

    free: bool
    max_size: Annotated[int, Meta(ge=1)] = 32
    pad: PadSpec = field(default_factory=PadSpec)
    proof: BatchProof | None = None
    why_not: str = ""

    @property
    def joins(self) -> bool:
        """Whether requests may share a run, and a large one be split."""
        return self.free and self.proof is not None

    @property
    def reason(self) -> str:
        """Why they may not; empty where they may. An older Demi went by the names of axes, and proved nothing."""
        unproved = "the bundle holds no proof that its rows do not depend on each other; export the model again"
        return "" if self.joins else self.why_not or unproved


@dataclass(frozen=True, slots=True)
class FileEntry:
    """Size and SHA-256 of one file of the bundle."""

    bytes: Annotated[int, Meta(ge=0)]
    sha256: str


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where a bundle comes from, enough to make it again."""

    created: str
    """UTC, ISO 8601."""
    source: str
    """File name of the source model (no folder: bundles travel)."""
    source_sha256: str
    tools: dict[str, str]
    """Package name to version."""
    samples: str
    """What the accuracy was measured on."""
    proven: bool = True
    """False where nothing was run, so that nothing is known of the accuracy (`demi export --no-run`)."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a bundle is: its tensors, its precision, its budget, its files and where they come from."""

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
    """The outputs that FP32 itself answers with other values each time."""

    @property
    def proven(self) -> bool:
        """Whether the half model was run beside FP32, and kept its budget, when the bundle was made."""
        return self.provenance.proven

    @property
    def has_reference(self) -> bool:
        """Whether the FP32 model is in the bundle."""
        return REFERENCE in self.files


def check_model_name(name: str) -> str:
    """`name` when it can name a model: it becomes a folder and a URL segment. Raises BundleError."""
    if not _NAME.fullmatch(name):
        raise BundleError(
            f"`{name}` cannot be a model name: it becomes a folder and a part of URLs as it is",
            hint="use ASCII letters, digits, `.`, `_` and `-`, starting with a letter or digit, at most 128: -o models/NAME",
        )
    return name


def name_of_file(stem: str) -> str:
    """A model name for a file's: with `-` for spaces and signs. A name with letters of other scripts stays as it is."""
    legal = re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._")[:128]
    lost = any(sign.isalnum() and not sign.isascii() for sign in stem)
    return stem if lost or not legal else legal


def encode(manifest: Manifest) -> bytes:
    """The manifest as indented JSON."""
    return msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"


def decode(data: bytes, where: str) -> Manifest:
    """A manifest from its bytes; BundleError names the field that is wrong."""
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
        raise BundleError(
            f"the manifest is not as it should be: {error}", where=where, hint="export the model again"
        ) from error
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
        raise BundleError(f"the manifest names no `{MODEL}`", where=where, hint="export the model again")
    return manifest


def _unknown_field(raw: Any, known: Any, path: str = "$") -> str | None:
    """The path of the first field in the JSON that no class here has; dataclasses let msgspec ignore those."""
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
            f"the manifest names a file outside the bundle: `{name}`",
            where=where,
            hint="do not use this bundle",
        )
