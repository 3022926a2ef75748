"""Load a bundle for serving: verify digests, choose the model, open sessions, check them, warm up."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from demi.accuracy.budget import Budget
from demi.accuracy.varying import STEADY, Varying
from demi.bundles import manifest as manifests
from demi.bundles.bundle import Bundle, open_bundle
from demi.bundles.manifest import BatchSpec, Manifest
from demi.errors import InferenceError, PackageError
from demi.generation.generator import Generator, open_generator
from demi.processing.processor import Processor, open_processor
from demi.proofs.attempt import open_road
from demi.runtime.base import Device, Session
from demi.runtime.onnxruntime.session import SessionSettings, open_session
from demi.server.models.cpu_choice import (
    Choice,
    Prove,
    proved_before,
    session_threads,
    threads_of_a_run,
)
from demi.server.models.emulation import emulated
from demi.server.models.engine_choice import ChosenSession, OpenSession, open_engine_or_onnx
from demi.server.models.model_choice import choose_model, fall_back
from demi.server.models.session_check import check_session
from demi.server.models.warm_up import finite_outputs, warm_batches, warm_up
from demi.server.protocol.signature import Signature
from demi.server.scheduling.padding import Padding
from demi.server.settings import ServeSettings
from demi.tensors import DType, TensorSpec

log = logging.getLogger("demi.server")

Part = Literal["model", "reference"]
TrialLoad = Callable[[Path, ServeSettings, Part], None]
"""Loads a part of a bundle in a process of its own. Raises CrashError if that process crashes or hangs."""


def no_trial(path: Path, settings: ServeSettings, part: Part) -> None:
    """Load nothing ahead."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A loaded bundle: sessions, signature, and the precision that the model actually runs in.

    `open_reference` opens the FP32 reference of a half model, if the bundle has one; it is slow, and takes no memory
    before it is called. `input_ranges` are the calibrated ranges. `finite_outputs` are the outputs that FP32 answered
    with finite values on every golden input, so that half precision is to blame if they are not finite.
    """

    sessions: tuple[Session, ...]
    signature: Signature
    precision: str
    open_reference: Callable[[], Session] | None = None
    budget: Budget = field(default_factory=Budget)
    input_ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    finite_outputs: frozenset[str] = frozenset()
    varying: Varying = STEADY
    """Outputs that differ from run to run even in FP32."""
    runtime: str = "onnxruntime"
    note: str = ""
    """The reason that it is not served as exported, or the result of the proof on this CPU."""
    processor: Processor | None = None
    """Makes inputs of texts, images or sounds, and answers of outputs; None for tensors alone."""
    generator: Generator | None = None
    """Generates texts token by token; None for a model that does not."""
    encoder: Loaded | None = None
    """The encoder of a generator that has one."""

    @property
    def session(self) -> Session:
        """One of the sessions, which differ only in their device."""
        return self.sessions[0]


def load_bundle(
    path: Path,
    settings: ServeSettings,
    open_model: OpenSession | None = None,
    *,
    trial: TrialLoad = no_trial,
    prove: Prove = proved_before,
    verify: bool = True,
) -> Loaded:
    """Verify the bundle at `path`, try it out, load it on the devices of the settings, warm it up, and return it.

    `prove` returns the proof that half pays on a CPU; by default only a proof made before counts. Raises the DemiError
    that prevents the bundle from being served.
    """
    bundle = open_bundle(path, verify=verify)
    if not bundle.manifest.proven:
        log.warning("%s: exported with --no-run: its accuracy is unknown", bundle.manifest.name)
    trial(path, settings, "model")
    choice = choose_model(bundle, settings, prove)
    open_session = open_model or open_onnx

    def try_reference() -> None:
        trial(path, settings, "reference")

    if settings.emulate:
        with emulated(choice, settings) as ready:
            loaded = _load(bundle, ready, settings, open_session, try_reference)
    else:
        loaded = _load_or_fall_back(bundle, choice, settings, open_session, try_reference)
    return _with_encoder(loaded, bundle, settings, open_model, trial, prove)


def _load_or_fall_back(
    bundle: Bundle,
    choice: Choice,
    settings: ServeSettings,
    open_session: OpenSession,
    try_reference: Callable[[], None],
) -> Loaded:
    try:
        return _load(bundle, choice, settings, open_session, try_reference)
    except InferenceError as error:
        fallback = fall_back(bundle, choice, settings.device, error)
        return _load(bundle, fallback, settings, open_session, try_reference)


def _load(
    bundle: Bundle,
    choice: Choice,
    settings: ServeSettings,
    open_session: OpenSession,
    try_reference: Callable[[], None],
) -> Loaded:
    chosen = _open(bundle, choice, settings, open_session)
    sessions = tuple(each.session for each in chosen)
    batch = _batch(bundle.manifest, settings, [each.max_rows for each in chosen])
    processor = _processor(bundle)
    generator = _generator(bundle)
    signature = _signature(sessions[0], bundle.manifest, batch, processor, generator)
    for session in sessions:
        check_session(session, bundle.manifest)
    signature.check_batch_axis()
    Padding(signature)  # raises if the declared padding does not fit the tensors
    for each in chosen:
        warm_up(each.session, bundle, has_limits=each.max_rows is not None)
        if choice.road and signature.joins:
            warm_batches(each.session, bundle, signature.max_batch_size)
    return Loaded(
        sessions,
        signature,
        choice.precision,
        reference_opener(bundle, choice, settings, open_session, try_reference),
        bundle.manifest.budget,
        bundle.manifest.input_ranges,
        finite_outputs(bundle),
        bundle.manifest.varying,
        choice.runtime,
        choice.note,
        processor,
        generator,
    )


def _with_encoder(
    loaded: Loaded,
    bundle: Bundle,
    settings: ServeSettings,
    open_model: OpenSession | None,
    trial: TrialLoad,
    prove: Prove,
) -> Loaded:
    """Return a loaded generator with its encoder, a bundle in the decoder's; the decoder's trial load has loaded it, too."""
    if loaded.generator is None or bundle.encoder() is None:
        return loaded

    def try_reference(path: Path, settings: ServeSettings, part: Part) -> None:
        if part == "reference":
            trial(path, settings, part)

    place = bundle.path / manifests.ENCODER
    encoder = load_bundle(place, settings, open_model, trial=try_reference, prove=prove, verify=False)
    return replace(loaded, encoder=encoder)


def _generator(bundle: Bundle) -> Generator | None:
    """Return the bundle's generator; None, with a warning, where a package for it is missing: tensors are served."""
    try:
        return open_generator(bundle)
    except PackageError as error:
        log.warning("%s: does not generate: %s; %s", bundle.manifest.name, error.message, error.hint)
        return None


def _processor(bundle: Bundle) -> Processor | None:
    """Return the bundle's processor; None, with a warning, where a package for it is missing: tensors are served."""
    try:
        return open_processor(bundle)
    except PackageError as error:
        log.warning("%s: takes tensors only: %s; %s", bundle.manifest.name, error.message, error.hint)
        return None


def _open(bundle: Bundle, choice: Choice, settings: ServeSettings, open_session: OpenSession) -> list[ChosenSession]:
    """Open one session per instance: with OpenVINO all of one compiled model, else of an engine or ONNX Runtime."""
    if choice.road:
        return [
            ChosenSession(session)
            for session in open_road(bundle, choice.road, threads_of_a_run(settings), len(settings.places))
        ]
    wanted = session_settings(settings)
    return [
        open_engine_or_onnx(bundle, choice.path, device, settings, wanted, open_session) for device in settings.places
    ]


def _signature(
    session: Session,
    manifest: Manifest,
    batch: BatchSpec,
    processor: Processor | None,
    generator: Generator | None = None,
) -> Signature:
    """Return the signature for clients: the session's tensors, with FP16 where the manifest declares it.

    A generator's cache is as its session has it: it stays on the server, and a cast in each step would cost time and digits.
    """
    cache = generator.cache_names if generator else frozenset()

    def promised(found: Sequence[TensorSpec], specs: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
        half = {spec.name for spec in specs if spec.dtype is DType.FP16} - cache
        return tuple(
            replace(spec, dtype=DType.FP16) if spec.name in half and spec.dtype is DType.FP32 else spec
            for spec in found
        )

    return Signature(
        promised(session.inputs, manifest.inputs),
        promised(session.outputs, manifest.outputs),
        batch,
        processor.inputs if processor else (),
        processor.answers if processor else (),
    )


def session_settings(settings: ServeSettings) -> SessionSettings:
    """Return the settings of sessions: a model's CPU instances share the cores of this machine, and no optimization
    removes a rounding of the emulator."""
    return SessionSettings(
        threads=session_threads(settings),
        strict_device=settings.strict_device,
        memory_bytes=settings.device_memory_bytes,
        faithful=settings.emulate,
    )


def reference_opener(
    bundle: Bundle, choice: Choice, settings: ServeSettings, open_session: OpenSession, trial: Callable[[], None]
) -> Callable[[], Session] | None:
    """Return the function that tries and opens the FP32 reference; None if there is none or FP32 is served already."""
    path = bundle.reference_path
    if path is None or choice.precision == "fp32":
        return None

    def open_reference() -> Session:
        trial()
        session = open_session(path, settings.reference_place, session_settings(settings))
        check_session(session, bundle.manifest)
        return session

    return open_reference


def open_onnx(path: Path, device: Device, settings: SessionSettings) -> Session:
    """Open an ONNX Runtime session. Log the nodes that a GPU session leaves on the CPU, except shape arithmetic."""
    session = open_session(path, device, settings)
    if stray := session.unexpected_on_cpu(path):
        log.warning("%s: %d nodes run on the CPU, among them %s", path, len(stray), ", ".join(stray[:5]))
    return session


def _batch(manifest: Manifest, settings: ServeSettings, limits: Sequence[int | None]) -> BatchSpec:
    """Return how requests are joined: not at all unless the bundle proves that rows are independent of each other."""
    batch = manifest.batch
    if why := batch.reason:
        level = logging.INFO if batch.why_not else logging.WARNING  # no reason recorded: exporting again may fix it
        log.log(level, "%s: requests are neither joined nor split: %s", manifest.name, why)
        return replace(batch, free=False, why_not=why)
    wanted = settings.max_batch or batch.max_size
    return replace(batch, max_size=min(wanted, *(most or wanted for most in limits)))
