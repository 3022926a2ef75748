"""Sessions for the two models of a bundle: the half model, emulated or on a device, and the FP32 reference."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import onnx_ir as ir

from demi.bundles.bundle import Bundle
from demi.calibration.emulation.widen import widen
from demi.calibration.sessions import session_for
from demi.errors import BundleError, InferenceError, SourceError
from demi.float16 import BF16, from_half
from demi.proofs.attempt import open_road
from demi.proofs.record import Road
from demi.runtime.base import CPU, Device, Session
from demi.runtime.cores import usable_cores
from demi.runtime.onnxruntime.first_open import open_tried
from demi.runtime.onnxruntime.session import OrtSession
from demi.runtime.options import FAITHFUL
from demi.tensors import DType, Feeds


@contextlib.contextmanager
def half_session(bundle: Bundle, device: Device = CPU, road: Road | None = None) -> Iterator[Session]:
    """Open the bundle's half model: on a CPU with every half rounding made explicit, on other devices as it is.
    With a `road`, OpenVINO runs it on the CPU as it is.

    Raises BundleError for a model that cannot be read, and DeviceError for a device that cannot be used.
    """
    if road is not None:
        yield open_road(bundle, road, usable_cores())[0]
        return
    if device.kind != "cpu":
        with _as_bundle_error(bundle):
            session = open_tried(bundle.model_path, device)
        yield session
        return
    try:
        model = ir.load(bundle.model_path)
    except Exception as error:
        raise BundleError(
            f"`{bundle.model_path.name}` cannot be read: {error}", where=str(bundle.path), hint="export the model again"
        ) from error
    with contextlib.ExitStack() as stack:
        with _as_bundle_error(bundle):
            plan = bundle.plan()
            emulated = widen(model, fused=plan.kernels if plan is not None else None)
            session = stack.enter_context(session_for(emulated, settings=FAITHFUL, opener=open_tried))
        yield session


@contextlib.contextmanager
def reference_session(bundle: Bundle) -> Iterator[OrtSession | None]:
    """Open the bundle's FP32 model; yields None when it was written without one. Raises as `half_session` does."""
    with contextlib.ExitStack() as stack:
        with _as_bundle_error(bundle):
            path, session = bundle.reference_path, None
            if path is not None and bundle.manifest.varying.drawn:  # it gets the random numbers that half gets
                session = stack.enter_context(session_for(ir.load(path), settings=FAITHFUL))
            elif path is not None:
                session = open_tried(path, settings=FAITHFUL)
        yield session


def run_half(half: Session, feeds: Feeds, outputs: Sequence[str] | None = None) -> Feeds:
    """Run the half model and return its outputs as numbers: BF16, which a device returns as bits, becomes float32.

    Raises InferenceError when the model fails on these inputs.
    """
    bits = {spec.name for spec in half.outputs if spec.dtype is DType.BF16}
    try:
        answers = half.run(feeds, outputs)
    except InferenceError as error:
        raise InferenceError(
            f"the half model fails on these inputs: {error.message}",
            hint="demi explain names the node that fails, and why",
        ) from error
    return {name: from_half(array, BF16) if name in bits else array for name, array in answers.items()}


@contextlib.contextmanager
def _as_bundle_error(bundle: Bundle) -> Iterator[None]:
    """Turn a model's SourceError into a BundleError that names the bundle."""
    try:
        yield
    except SourceError as error:
        raise BundleError(
            error.message, where=error.where or str(bundle.path), hint="export the model again"
        ) from error
