"""The FP32 model beside a proof, in OpenVINO's format and with weights in half, so that servers map it.

    models/minilm/1/proof/weights-0123456789abcdef.xml
    models/minilm/1/proof/weights-0123456789abcdef.bin

Its name is its digest, which the signed proof holds in full: a file that this machine has not written is not opened. In a
folder that cannot be written to, each server writes one for itself.
"""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Literal

from demi.bundles import manifest as manifests
from demi.bundles.bundle import Bundle
from demi.errors import SourceError
from demi.onnx_file.graph import read_graph
from demi.proofs.record import FOLDER, Road
from demi.runtime.openvino.stored import GRAPH, WEIGHTS, digest_of, write_stored

PREFIX = "weights-"
HALF: dict[str, Literal["fp16", "bf16"]] = {"f16": "fp16", "bf16": "bf16"}
"""The precision of stored weights, by OpenVINO's hint."""

log = logging.getLogger("demi.runtime")


def is_stored(road: Road) -> bool:
    """Return whether a road computes the FP32 model in half, so that its weights are stored in half."""
    return road.file == manifests.REFERENCE and road.hint in HALF


def write_model(bundle: Bundle, road: Road, path: Path) -> None:
    """Write a road's model as `path` with both suffixes; SourceError where OpenVINO cannot, or none of a plan's FP32 nodes
    is left in it."""
    assert bundle.reference_path is not None
    precise = layer_names(bundle.reference_path, fp32_nodes(bundle)) if road.islands else frozenset()
    marked = write_stored(bundle.reference_path, path, HALF[road.hint], precise)
    if road.islands and not marked:
        raise SourceError("OpenVINO's graph has none of the nodes that the plan keeps in FP32", where=str(bundle.path))


def fp32_nodes(bundle: Bundle) -> frozenset[str]:
    """Return the names of the nodes that a bundle's plan keeps in FP32; none without a plan."""
    plan = bundle.plan()
    return frozenset(each.node for each in plan.computing if not each.is_half) if plan else frozenset()


def layer_names(model: Path, nodes: AbstractSet[str]) -> frozenset[str]:
    """Return how OpenVINO may call the layers of some nodes of an ONNX file: by the node, or by an output of the model."""
    try:
        graph = read_graph(model)
    except (ValueError, IndexError, OSError) as error:
        raise SourceError(f"the model's nodes cannot be read: {error}", where=str(model)) from error
    return frozenset(name for node in graph if node.name in nodes for name in (node.name, *node.outputs))


def store(bundle: Bundle, road: Road) -> str:
    """Store a road's model beside the bundle's proofs; return its digest, or `""` where nothing can be written there.

    Raises SourceError as `write_model` does.
    """
    folder = bundle.path / FOLDER
    try:
        folder.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".", dir=folder) as draft:
            made = Path(draft) / "weights"
            write_model(bundle, road, made)
            digest = digest_of(made)
            for suffix in (WEIGHTS, GRAPH):
                os.replace(made.with_suffix(suffix), _path(bundle, digest).with_suffix(suffix))
            return digest
    except OSError as error:
        log.info("%s: weights in half cannot be kept beside the bundle: %s", bundle.manifest.name, error)
        return ""


@contextlib.contextmanager
def model_of(bundle: Bundle, road: Road) -> Iterator[Path]:
    """Yield the file to open for a road: the bundle's own, the one beside its proof, or a temporary one.

    A file that is mapped stays readable when its name is gone. Raises SourceError as `write_model` does.
    """
    if not is_stored(road):
        yield bundle.path / road.file
    elif kept := stored_model(bundle, road):
        yield kept
    else:
        with tempfile.TemporaryDirectory(prefix="demi-weights-") as folder:
            path = Path(folder) / f"weights{GRAPH}"
            write_model(bundle, road, path)
            yield path


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
