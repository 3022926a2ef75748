"""A bundle from disk to a warm session: digests, choice of model, load, check, warm-up."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from demi import manifest as manifests
from demi.bundle import Bundle, open_bundle
from demi.errors import BundleError, DeviceError
from demi.manifest import BatchSpec, Manifest
from demi.runtime.base import Device, Session
from demi.runtime.ort import SessionSettings, open_session
from demi.tensors import TensorSpec, check_feeds
from server.choice import open_chosen
from server.padding import Padding
from server.settings import ServeSettings
from server.signature import Signature

log = logging.getLogger("demi.server")

OpenSession = Callable[[Path, Device, SessionSettings], Session]


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model that can be served: its session, its signature, and the precision it really runs in."""

    session: Session
    signature: Signature
    precision: str


@dataclass(frozen=True, slots=True)
class _Choice:
    path: Path
    precision: str


def load_bundle(path: Path, settings: ServeSettings, open_model: OpenSession | None = None) -> Loaded:
    """The bundle at `path`, verified, loaded on the device of the settings, and warm.

    Raises the DemiError that says why it cannot be served.
    """
    bundle = open_bundle(path)
    choice = choose_model(bundle, settings.device)
    opened = open_chosen(bundle, choice.path, settings, open_model or open_onnx)
    session = opened.session
    check_session(session, bundle.manifest)
    signature = Signature(session.inputs, session.outputs, _batch(bundle.manifest, settings, opened.max_rows))
    signature.check_batch_axis()
    Padding(signature)  # which says what does not fit
    warm_up(session, bundle)
    return Loaded(session, signature, choice.precision)


def choose_model(bundle: Bundle, device: Device) -> _Choice:
    """The half-precision model, or the FP32 reference where this device has no kernels for the half type.

    ONNX Runtime's CPU provider computes nothing in BF16. Raises DeviceError when the bundle holds no reference then.
    """
    precision = bundle.manifest.precision
    if precision != "bf16" or device.kind != "cpu":
        return _Choice(bundle.model_path, precision)
    if bundle.reference_path is None:
        raise DeviceError(
            "a bf16 model cannot run on the CPU, and the bundle holds no FP32 reference to serve instead",
            hint="serve it with --device cuda, or export it with its reference",
        )
    log.warning("%s: a bf16 model cannot run on the CPU; serving its FP32 reference instead", bundle.manifest.name)
    return _Choice(bundle.reference_path, "fp32")


def open_onnx(path: Path, device: Device, settings: SessionSettings) -> Session:
    """An ONNX Runtime session; the log names what a GPU session leaves on the CPU."""
    session = open_session(path, device, settings)
    if stray := session.nodes_on_cpu():
        log.warning("%s: %d nodes run on the CPU, among them %s", path, len(stray), ", ".join(stray[:5]))
    return session


def check_session(session: Session, manifest: Manifest) -> None:
    """Raise BundleError unless the model's tensors are those that the manifest names.

    Datatypes are left to the session: a reference may take FP32 where the half model takes FP16.
    """
    for kind, found, promised in (
        ("inputs", session.inputs, manifest.inputs),
        ("outputs", session.outputs, manifest.outputs),
    ):
        if _outline(found) != _outline(promised):
            raise BundleError(
                f"the model's {kind} are {_listed(found)}, but the manifest says {_listed(promised)}",
                hint="export the model again",
            )


def warm_up(session: Session, bundle: Bundle) -> None:
    """Run the golden inputs once, so that the first request finds kernels chosen and memory in place.

    A bundle without them is served cold. Raises InferenceError or TensorError when the model cannot run its own inputs.
    """
    if manifests.GOLDEN not in bundle.manifest.files:
        log.info("%s: no golden inputs in the bundle, so no warm-up", bundle.manifest.name)
        return
    for feeds in bundle.golden().inputs:
        session.run(check_feeds(session.inputs, feeds, cast_floats=True))


def _batch(manifest: Manifest, settings: ServeSettings, most: int | None) -> BatchSpec:
    wanted = settings.max_batch or manifest.batch.max_size
    return replace(manifest.batch, max_size=min(wanted, most or wanted))


def _outline(specs: tuple[TensorSpec, ...]) -> list[tuple[str, list[int]]]:
    return [(spec.name, spec.wire_shape) for spec in specs]


def _listed(specs: tuple[TensorSpec, ...]) -> str:
    return ", ".join(map(str, specs)) or "none"
