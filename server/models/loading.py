"""A bundle from disk to a warm session: digests, choice of model, load, check, warm-up."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from demi.accuracy.budget import Budget
from demi.accuracy.varying import STEADY, Varying
from demi.bundles.bundle import Bundle, open_bundle
from demi.bundles.manifest import BatchSpec, Manifest
from demi.errors import BundleError, DeviceError, InferenceError, TensorError
from demi.proofs.attempt import open_road
from demi.proofs.turns import with_batch
from demi.runtime.base import Device, Session
from demi.runtime.onnxruntime.session import SessionSettings, open_session
from demi.server.models.cpu_choice import (
    Choice,
    Prove,
    choose_on_cpu,
    proved_before,
    session_threads,
    threads_of_a_run,
)
from demi.server.models.engine_choice import Opened, open_chosen
from demi.server.protocol.signature import Signature
from demi.server.scheduling.padding import Padding
from demi.server.settings import ServeSettings
from demi.tensors import DType, Feeds, TensorSpec, check_feeds

log = logging.getLogger("demi.server")

OpenSession = Callable[[Path, Device, SessionSettings], Session]
Part = Literal["model", "reference"]
Trial = Callable[[Path, ServeSettings, Part], None]
"""Opens a part of a bundle where it does no harm; raises the CrashError that says why it must not be opened here."""


def untried(path: Path, settings: ServeSettings, part: Part) -> None:
    """No trial."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model that can be served: its sessions, its signature, and the precision it really runs in.

    `open_reference` opens the FP32 model beside a half one, where the bundle has it; it takes long, and no memory
    before it is called. `input_ranges` are what calibration saw, and `finite_outputs` those that FP32 answered with
    finite values to every golden input: what else is not finite is half's doing.
    """

    sessions: tuple[Session, ...]
    signature: Signature
    precision: str
    open_reference: Callable[[], Session] | None = None
    budget: Budget = field(default_factory=Budget)
    input_ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    finite_outputs: frozenset[str] = frozenset()
    varying: Varying = STEADY
    """The outputs that FP32 itself answers with other values each time."""
    runtime: str = "onnxruntime"
    note: str = ""
    """Why it is not served as it was exported, or what was proved of half on this CPU."""

    @property
    def session(self) -> Session:
        """One of its sessions, all of which are alike but for their device."""
        return self.sessions[0]


def load_bundle(
    path: Path,
    settings: ServeSettings,
    open_model: OpenSession | None = None,
    *,
    trial: Trial = untried,
    prove: Prove = proved_before,
    verify: bool = True,
) -> Loaded:
    """The bundle at `path`, verified, tried out, loaded on the device of the settings, and warm.

    `prove` says whether half pays on a CPU; by itself loading believes what was proved before. Raises the DemiError that says why it cannot be served.
    """
    bundle = open_bundle(path, verify=verify)
    if not bundle.manifest.proven:
        log.warning("%s: exported with --no-run: nothing is known of its accuracy", bundle.manifest.name)
    trial(path, settings, "model")
    choice = choose_model(bundle, settings, prove)
    opened = open_model or open_onnx

    def try_reference() -> None:
        trial(path, settings, "reference")

    try:
        return _load(bundle, choice, settings, opened, try_reference)
    except InferenceError as error:
        instead = _instead(bundle, choice, settings.device, error)
        return _load(bundle, instead, settings, opened, try_reference)


def _load(
    bundle: Bundle, choice: Choice, settings: ServeSettings, opened: OpenSession, try_reference: Callable[[], None]
) -> Loaded:
    chosen = _open(bundle, choice, settings, opened)
    sessions = tuple(each.session for each in chosen)
    batch = _batch(bundle.manifest, settings, [each.max_rows for each in chosen])
    signature = _signature(sessions[0], bundle.manifest, batch)
    for session in sessions:
        check_session(session, bundle.manifest)
    signature.check_batch_axis()
    Padding(signature)  # which says what does not fit
    for each in chosen:
        warm_up(each.session, bundle, has_limits=each.max_rows is not None)
        if choice.road and signature.joins:
            warm_batches(each.session, bundle, signature.max_batch_size)
    return Loaded(
        sessions,
        signature,
        choice.precision,
        reference_opener(bundle, choice, settings, opened, try_reference),
        bundle.manifest.budget,
        bundle.manifest.input_ranges,
        finite_outputs(bundle),
        bundle.manifest.varying,
        choice.runtime,
        choice.note,
    )


def _open(bundle: Bundle, choice: Choice, settings: ServeSettings, opened: OpenSession) -> list[Opened]:
    """A session for each place: in OpenVINO all of one compiled model, else an engine's or ONNX Runtime's."""
    if choice.road:
        return [
            Opened(session)
            for session in open_road(bundle, choice.road, threads_of_a_run(settings), len(settings.places))
        ]
    wanted = session_settings(settings)
    return [open_chosen(bundle, choice.path, device, settings, wanted, opened) for device in settings.places]


def _signature(session: Session, manifest: Manifest, batch: BatchSpec) -> Signature:
    """What clients see: the session's tensors, but FP16 as the manifest promises it where the session takes FP32."""

    def promised(found: Sequence[TensorSpec], specs: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
        half = {spec.name for spec in specs if spec.dtype is DType.FP16}
        return tuple(
            replace(spec, dtype=DType.FP16) if spec.name in half and spec.dtype is DType.FP32 else spec
            for spec in found
        )

    return Signature(promised(session.inputs, manifest.inputs), promised(session.outputs, manifest.outputs), batch)


def session_settings(settings: ServeSettings) -> SessionSettings:
    """How sessions are made: the cores of this machine are shared by a model's instances."""
    return SessionSettings(
        threads=session_threads(settings),
        strict_device=settings.strict_device,
        memory_bytes=settings.device_memory_bytes,
    )


def reference_opener(
    bundle: Bundle, choice: Choice, settings: ServeSettings, opened: OpenSession, trial: Callable[[], None]
) -> Callable[[], Session] | None:
    """What opens the FP32 model of a bundle that is served in half, once it is tried; None where it holds none."""
    path = bundle.reference_path
    if path is None or choice.precision == "fp32":
        return None

    def open_reference() -> Session:
        trial()
        session = opened(path, settings.reference_place, session_settings(settings))
        check_session(session, bundle.manifest)
        return session

    return open_reference


def finite_outputs(bundle: Bundle) -> frozenset[str]:
    """The float outputs that FP32 answered with finite values to every golden input; all of them without golden inputs."""
    names = {spec.name for spec in bundle.manifest.outputs if spec.dtype.is_float and spec.dtype is not DType.BF16}
    for outputs in golden_outputs(bundle):
        names -= {
            name for name, values in outputs.items() if values.dtype.kind == "f" and not np.isfinite(values).all()
        }
    return frozenset(names)


def golden_outputs(bundle: Bundle) -> Sequence[Feeds]:
    """The golden FP32 outputs; empty for a bundle without them."""
    return bundle.golden().outputs if bundle.has_golden else []


def choose_model(bundle: Bundle, settings: ServeSettings, prove: Prove) -> Choice:
    """The half model on a GPU; on a CPU what pays there (`demi.server.models.cpu_choice`).

    Raises DeviceError where what the settings insist on cannot be had.
    """
    if settings.device.kind == "cpu":
        return choose_on_cpu(bundle, settings, prove)
    if settings.runtime == "openvino":
        raise DeviceError("--runtime openvino: OpenVINO runs on a CPU here", hint="leave --device out, or use auto")
    return Choice(bundle.model_path, bundle.manifest.precision)


def _instead(bundle: Bundle, choice: Choice, device: Device, error: InferenceError) -> Choice:
    """The FP32 reference, for a half model that does not get through its own inputs on a CPU; the error where there is none.

    Some of ONNX Runtime's CPU kernels load in half and fail when they run: scatters that add, for one.
    """
    if device.kind != "cpu" or choice.precision == "fp32" or bundle.reference_path is None:
        raise error
    log.warning(
        "%s: its half model cannot run on this CPU (%s); serving its FP32 reference instead",
        bundle.manifest.name,
        error.message,
    )
    note = f"the FP32 reference serves: the half model cannot run on this CPU ({error.message})"
    return Choice(bundle.reference_path, "fp32", note=note)


def open_onnx(path: Path, device: Device, settings: SessionSettings) -> Session:
    """An ONNX Runtime session; the log names what a GPU session leaves on the CPU, but for work on shapes."""
    session = open_session(path, device, settings)
    if stray := session.strays(path):
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


def warm_up(session: Session, bundle: Bundle, *, has_limits: bool = False) -> None:
    """Run the golden inputs once, so that the first request finds kernels chosen and memory in place.

    A bundle without them is served cold, and an engine, which `has_limits`, without those that it was not built for.
    Raises InferenceError or TensorError when the model cannot run its own inputs.
    """
    if not bundle.has_golden:
        log.info("%s: no golden inputs in the bundle, so no warm-up", bundle.manifest.name)
        return
    for feeds in bundle.golden().inputs:
        ready = check_feeds(session.inputs, feeds, cast_floats=True)
        try:
            session.run(ready)
        except TensorError as error:
            if not has_limits:
                raise
            log.info("%s: warm-up leaves out a golden set: %s", bundle.manifest.name, error.message)


def warm_batches(session: Session, bundle: Bundle, most: int) -> None:
    """Run the first golden inputs in batches of 1, 2, 4 and so on: a shape's first run takes some milliseconds more."""
    if not bundle.has_golden:
        return
    feeds = check_feeds(session.inputs, bundle.golden().inputs[0], cast_floats=True)
    for rows in sorted({min(2**power, most) for power in range(most.bit_length() + 1)}):
        session.run(with_batch(feeds, session.inputs, rows))


def _batch(manifest: Manifest, settings: ServeSettings, limits: Sequence[int | None]) -> BatchSpec:
    """How requests are joined: not at all unless the bundle proves that rows do not depend on each other."""
    batch = manifest.batch
    if why := batch.reason:
        level = logging.INFO if batch.why_not else logging.WARNING  # which exporting it again may mend
        log.log(level, "%s: requests are neither joined nor split: %s", manifest.name, why)
        return replace(batch, free=False, why_not=why)
    wanted = settings.max_batch or batch.max_size
    return replace(batch, max_size=min(wanted, *(most or wanted for most in limits)))


def _outline(specs: tuple[TensorSpec, ...]) -> list[tuple[str, list[int]]]:
    return [(spec.name, spec.wire_shape) for spec in specs]


def _listed(specs: tuple[TensorSpec, ...]) -> str:
    return ", ".join(map(str, specs)) or "none"
