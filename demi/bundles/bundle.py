"""Bundles on disk: opened with their digests verified, written atomically.

    models/minilm/1/manifest.json, model.onnx, reference.onnx, plan.json, accuracy.json, golden.npz

`docs/bundle.md` describes every file.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import msgspec
import numpy as np

from demi.bundles import manifest as manifests
from demi.bundles.archives import read_arrays
from demi.bundles.drafts import REPLACED, draft_beside, locked
from demi.bundles.find import bundle_at
from demi.bundles.manifest import FileEntry, Manifest
from demi.bundles.stamps import stamps
from demi.errors import BundleError, DigestError
from demi.files import output_folder, why_unreadable
from demi.onnx_file.contents import external_files, made_bytes, most_bytes
from demi.onnx_file.protobuf import GroupError
from demi.plan import PrecisionPlan, read_plan
from demi.tensors import Array, Feeds

_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Golden:
    """Golden sets: a few inputs and their FP32 outputs, for warm-up, readiness and checks."""

    inputs: list[Feeds]
    outputs: list[Feeds]


class _Generation(msgspec.Struct):
    same: float


class _Accuracy(msgspec.Struct):
    """The part of `accuracy.json` that is read again."""

    generation: _Generation | None = None


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle on disk: its folder and its manifest."""

    path: Path
    manifest: Manifest

    @property
    def model_path(self) -> Path:
        """Return the path of the mixed half-precision ONNX model."""
        return self.path / manifests.MODEL

    @property
    def reference_path(self) -> Path | None:
        """Return the path of the FP32 ONNX model, or None when the bundle was written without it."""
        return self.path / manifests.REFERENCE if self.manifest.has_reference else None

    def require_proof(self) -> None:
        """Raise BundleError for a bundle that was exported without running it: it has no FP32 outputs to compare with."""
        if not self.manifest.proven:
            raise BundleError(
                "the bundle was exported with --no-run: it holds no FP32 outputs to compare with",
                where=str(self.path),
                hint="measure it in the runtime that has its operators, or export it without --no-run where it can run",
            )

    @property
    def has_golden(self) -> bool:
        """Return whether it holds golden inputs and outputs."""
        return manifests.GOLDEN in self.manifest.files

    @property
    def has_processing(self) -> bool:
        """Return whether it takes raw inputs: text, images or sound."""
        return manifests.PROCESSING in self.manifest.files

    def verify(self) -> None:
        """Compare every file with its digest, but not again those of the cache that did not change since they were compared.

        Raises DigestError, naming the first that differs.

        Raises BundleError for a model that asks for files or memory beyond the bundle's own.
        """
        compared = stamps()
        for name, entry in self.manifest.files.items():
            path = self.path / name
            if _leads_away(path, self.path) or not path.is_file():
                raise DigestError(
                    f"`{name}` is missing from the bundle",
                    where=str(self.path),
                    hint="export the model again, or restore the file",
                )
            if path.stat().st_size == entry.bytes and compared.is_valid(entry.sha256, path):
                continue
            if path.stat().st_size != entry.bytes or digest(path) != entry.sha256:
                raise DigestError(
                    f"`{name}` is not the file that was written: its digest differs",
                    where=str(self.path),
                    hint="the bundle is damaged or was edited: export the model again",
                )
            compared.renew(entry.sha256, path)
        self.check_models()
        if (encoder := self.encoder()) is not None:
            encoder.verify()

    def encoder(self) -> Bundle | None:
        """Return the bundle of the encoder in that of a decoder, None without one. Raises BundleError as `open_bundle`.

        Its files are listed in the decoder's manifest as well, and `verify` verifies both.
        """
        if f"{manifests.ENCODER}/{manifests.MANIFEST}" not in self.manifest.files:
            return None
        found = open_bundle(self.path / manifests.ENCODER, verify=False)
        if f"{manifests.ENCODER}/{manifests.MANIFEST}" in found.manifest.files:
            raise BundleError("the encoder holds another encoder", where=str(self.path), hint="export the model again")
        return found

    def check_models(self) -> None:
        """Raise BundleError for a model that reads files the manifest does not list, or creates oversized constants.

        The models of a bundle's encoder are checked as well.
        """
        if (encoder := self.encoder()) is not None:
            encoder.check_models()
        for path in (self.model_path, self.reference_path):
            if path is not None and path.is_file() and (why := _asks_too_much(path, self.manifest.files)):
                raise BundleError(
                    f"`{path.name}` {why}", where=str(self.path), hint="do not use this bundle: export the model again"
                )

    def plan(self) -> PrecisionPlan | None:
        """Return the precision plan, or None when the manifest lists none. Raises InputError when it cannot be read."""
        return read_plan(self.path / manifests.PLAN) if manifests.PLAN in self.manifest.files else None

    def share_of_tokens(self) -> float | None:
        """Return the share of tokens that half chose as FP32 did at the export; None for a model that does not generate.

        Raises BundleError when `accuracy.json` cannot be read.
        """
        if manifests.ACCURACY not in self.manifest.files:
            return None
        try:
            found = msgspec.json.decode((self.path / manifests.ACCURACY).read_bytes(), type=_Accuracy)
        except (OSError, msgspec.MsgspecError) as error:
            raise BundleError(
                f"`{manifests.ACCURACY}` cannot be read: {error}",
                where=str(self.path),
                hint="export the model again",
            ) from error
        return found.generation.same if found.generation else None

    def golden_or_none(self) -> Golden | None:
        """Return the golden inputs and outputs, or None when the manifest lists none. Raises as `golden` does."""
        return self.golden() if self.has_golden else None

    def golden(self) -> Golden:
        """Return the golden inputs and outputs. Raises BundleError when the file cannot be read."""
        path = self.path / manifests.GOLDEN
        try:
            return _unpack_golden(read_arrays(path))
        except Exception as error:  # damaged archives make NumPy and zipfile raise almost anything
            raise BundleError(
                f"`{manifests.GOLDEN}` cannot be read: {why_unreadable(error)}",
                where=str(self.path),
                hint="export the model again",
            ) from error


def open_bundle(path: Path, *, verify: bool = True) -> Bundle:
    """Open the bundle at `path`: a version's folder, a model's (its newest version), or a folder with a single model.

    Raises BundleError when there is none, several models, or a damaged bundle. With `verify`, every digest is checked.
    """
    folder = bundle_at(path)
    bundle = Bundle(folder, manifests.decode((folder / manifests.MANIFEST).read_bytes(), str(folder)))
    if verify:
        bundle.verify()
    return bundle


@contextlib.contextmanager
def writing(target: Path, *, force: bool = False) -> Iterator[Path]:
    """Yield a draft folder beside `target`, which replaces `target` when the block succeeds.

    On any error, Ctrl-C included, the draft is removed and `target` is unchanged. Call `write_manifest` last. Raises
    BundleError when `target` cannot be written.
    """
    check_target(target, force=force)
    with output_folder(target.parent):
        try:
            with draft_beside(target) as draft:
                yield draft
                _sync(draft)
                _take_place(draft, target)
        except OSError as error:
            raise BundleError(
                f"the bundle cannot be written: {error.strerror or error}",
                where=str(target),
                hint="check free space and permissions; nothing was left behind",
            ) from error


def check_target(target: Path, *, force: bool = False) -> None:
    """Raise BundleError when a bundle cannot be written to `target`: it exists, or is inside another bundle."""
    if inside := next(
        (folder for folder in target.absolute().parents if (folder / manifests.MANIFEST).is_file()), None
    ):
        raise BundleError(
            f"the output would lie inside the bundle `{inside}`",
            where=str(target),
            hint="give the model's folder with -o; its version becomes a folder in it (--model-version)",
        )
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise BundleError(
            "the output path is a file or a link",
            where=str(target),
            hint="choose a folder that does not exist yet",
        )
    if not target.exists() or not any(target.iterdir()):
        return
    if not force:
        raise BundleError(
            "the output folder exists",
            where=str(target),
            hint="use --force to replace the bundle, leave out --model-version to write the next version, or choose another folder with -o",
        )
    if not (target / manifests.MANIFEST).is_file():
        raise BundleError(
            "the output folder exists and is not a bundle, so it is not replaced",
            where=str(target),
            hint="choose another folder with -o",
        )


def write_manifest(draft: Path, manifest: Manifest) -> Manifest:
    """Write the manifest into `draft`, with the digests of all other files there, and return it."""
    files = {
        path.relative_to(draft).as_posix(): FileEntry(path.stat().st_size, digest(path))
        for path in sorted(draft.rglob("*"))
        if path.is_file() and path != draft / manifests.MANIFEST
    }
    complete = replace(manifest, files=files)
    (draft / manifests.MANIFEST).write_bytes(manifests.encode(complete))
    return complete


def write_golden(draft: Path, golden: Golden) -> None:
    """Write golden inputs and outputs as `golden.npz`, with keys `000/in/NAME` and `000/out/NAME`."""
    arrays: dict[str, Array] = {}
    for index, (inputs, outputs) in enumerate(zip(golden.inputs, golden.outputs, strict=True)):
        arrays |= {f"{index:03d}/in/{name}": array for name, array in inputs.items()}
        arrays |= {f"{index:03d}/out/{name}": array for name, array in outputs.items()}
    np.savez(draft / manifests.GOLDEN, allow_pickle=False, **{key: _plain(array) for key, array in arrays.items()})


def _plain(array: Array) -> Array:
    """Return strings with a fixed width, which NumPy stores without pickling; other arrays unchanged."""
    return array.astype(np.str_) if array.dtype.kind == "O" else array


def _leads_away(path: Path, folder: Path) -> bool:
    """Return whether a file of a bundle is reached through a symbolic link, whose target may change at any time."""
    return path.is_symlink() or any(
        parent.is_symlink() for parent in path.parents if parent != folder and parent.is_relative_to(folder)
    )


def _asks_too_much(model: Path, files: Mapping[str, FileEntry]) -> str | None:
    """Return what a model asks for beyond the files of its bundle, in words; None for nothing."""
    if not model.stat().st_size:
        return None  # the runtime reports an empty model
    try:
        externals, made = external_files(model), made_bytes(model)
    except GroupError:
        return "is not an ONNX model: it holds a protobuf group, which readers interpret differently"
    except (ValueError, IndexError):
        return None  # the runtime cannot read it either, and reports why
    for each in externals:
        entry = files.get(str(PurePosixPath(each.location)))
        if entry is None:
            return f"reads weights from `{each.location}`, which the manifest does not list"
        if each.end > entry.bytes:
            return f"reads {each.end:,} bytes of `{each.location}`, which has {entry.bytes:,}"
    beside = {str(PurePosixPath(each.location)) for each in externals}
    held = model.stat().st_size + sum(files[name].bytes for name in beside)
    if made > (most := most_bytes(held)):
        return f"creates constants of {made:,} bytes (at most {most:,} from {held:,})"
    return None


def _unpack_golden(arrays: dict[str, Array]) -> Golden:
    inputs: dict[int, Feeds] = {}
    outputs: dict[int, Feeds] = {}
    for key, array in arrays.items():
        index, side, name = key.split("/", 2)
        {"in": inputs, "out": outputs}[side].setdefault(int(index), {})[name] = array
    order = sorted(inputs.keys() | outputs.keys())  # sets of a model without inputs have outputs only
    return Golden([inputs.get(i, {}) for i in order], [outputs[i] for i in order])


def digest(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(draft: Path) -> None:
    for path in [*draft.rglob("*"), draft]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _take_place(draft: Path, target: Path) -> None:
    """Rename `draft` to `target`; an existing bundle is moved aside first, and back if that fails."""
    draft.chmod(0o755)
    if not target.exists():
        draft.rename(target)
        return
    aside = draft.with_suffix(REPLACED)
    with locked(target.parent):  # so that another process does not take the moved bundle for abandoned
        target.rename(aside)
        try:
            draft.rename(target)
        except BaseException:  # Ctrl-C too
            aside.rename(target)
            raise
        shutil.rmtree(aside, ignore_errors=True)
