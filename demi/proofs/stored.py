"""The FP32 model beside a proof, in OpenVINO's format and with weights in FP16, so that servers map it.

    models/minilm/1/proof/weights-0123456789abcdef.xml
    models/minilm/1/proof/weights-0123456789abcdef.bin

Its name is its digest, which the signed proof holds in full: a file that this machine has not written is not opened. In a
folder that cannot be written to, a server compresses the same weights in memory.
"""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
from pathlib import Path

from demi.bundles import manifest as manifests
from demi.bundles.bundle import Bundle
from demi.errors import SourceError
from demi.proofs.record import FOLDER, Road
from demi.runtime.openvino.stored import GRAPH, WEIGHTS, digest_of, write_stored

PREFIX = "weights-"

log = logging.getLogger("demi.runtime")


def has_half_weights(road: Road) -> bool:
    """Whether a road computes the FP32 model in half, so that its weights can be stored in half."""
    return road.file == manifests.REFERENCE and road.hint in ("f16", "bf16")


def store(bundle: Bundle) -> str:
    """Store a bundle's FP32 model beside its proofs; return its digest, or `""` where it does not fit or cannot be written."""
    assert bundle.reference_path is not None
    folder = bundle.path / FOLDER
    try:
        folder.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".", dir=folder) as draft:
            made = Path(draft) / "weights"
            if not write_stored(bundle.reference_path, made):
                return ""
            digest = digest_of(made)
            for suffix in (WEIGHTS, GRAPH):
                os.replace(made.with_suffix(suffix), _path(bundle, digest).with_suffix(suffix))
            return digest
    except (SourceError, OSError) as error:
        log.info("%s: weights in half cannot be kept beside the bundle: %s", bundle.manifest.name, error)
        return ""


def stored_model(bundle: Bundle, road: Road) -> Path | None:
    """Return the stored model of a road; None where there is none, or its files are not those of the proof."""
    if not road.stored:
        return None
    path = _path(bundle, road.stored)
    try:
        found = digest_of(path)
    except OSError:  # removed with the folder, or never kept
        return None
    if found == road.stored:
        return path
    log.warning("%s: `%s` is not as it was proved, and is not used", bundle.manifest.name, path.name)
    return None


def remove_unused(bundle: Bundle) -> None:
    """Remove the stored models that no proof beside the bundle names."""
    folder = bundle.path / FOLDER
    with contextlib.suppress(OSError):  # in a folder that cannot be written to
        proofs = [path.read_text("utf-8", "replace") for path in folder.glob("cpu-*.json")]
        for path in folder.glob(f"{PREFIX}*"):
            if not any(path.stem.removeprefix(PREFIX) in proof for proof in proofs):
                path.unlink(missing_ok=True)


def _path(bundle: Bundle, digest: str) -> Path:
    return bundle.path / FOLDER / f"{PREFIX}{digest[:16]}{GRAPH}"
