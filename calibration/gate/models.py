"""Both models of a bundle, asked: the half one, emulated or on a device, and the FP32 one, on golden sets and on data."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import onnx_ir as ir

from demi.accuracy.budget import Budget
from demi.accuracy.compare import TensorDiff, compare
from demi.bundles.bundle import Bundle, Golden
from demi.calibration.emulation.widen import widen
from demi.calibration.gate.bootstrap import SEED
from demi.calibration.gate.data import Data, batches, digest_of, rows_of_a_run
from demi.calibration.gate.evaluation import Evaluation, Run, evaluate
from demi.calibration.gate.metrics import Metric
from demi.calibration.sessions import session_for
from demi.errors import (
    BundleError,
    DemiError,
    InferenceError,
    InputError,
    SourceError,
)
from demi.float16 import BF16, from_half
from demi.runtime.base import CPU, Device, Session
from demi.runtime.onnxruntime.first_open import open_tried
from demi.runtime.onnxruntime.session import OrtSession
from demi.runtime.options import FAITHFUL
from demi.tensors import Array, DType, Feeds, TensorSpec, check_feeds


@contextlib.contextmanager
def half_session(bundle: Bundle, device: Device = CPU) -> Iterator[OrtSession]:
    """The bundle's half model: on a CPU with every half rounding made explicit, elsewhere as it is.

    Raises BundleError for a model that cannot be read, and DeviceError for a device that cannot be used.
    """
    if device.kind != "cpu":
        with _of(bundle):
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
        with _of(bundle):
            session = stack.enter_context(session_for(widen(model), settings=FAITHFUL, opener=open_tried))
        yield session


@contextlib.contextmanager
def reference_session(bundle: Bundle) -> Iterator[OrtSession | None]:
    """The bundle's FP32 model, or None when it was written without one."""
    with contextlib.ExitStack() as stack:
        with _of(bundle):
            path, session = bundle.reference_path, None
            if path is not None and bundle.manifest.varying.drawn:  # it gets the random numbers that half gets
                session = stack.enter_context(session_for(ir.load(path), settings=FAITHFUL))
            elif path is not None:
                session = open_tried(path, settings=FAITHFUL)
        yield session


@contextlib.contextmanager
def _of(bundle: Bundle) -> Iterator[None]:
    """Say of which bundle a model cannot be loaded."""
    try:
        yield
    except SourceError as error:
        raise BundleError(
            error.message, where=error.where or str(bundle.path), hint="export the model again"
        ) from error


def check_golden(
    bundle: Bundle, half: Session, reference: Session | None, budget: Budget
) -> tuple[Evaluation, float | None]:
    """The golden sets under the emulator, and the relative L2 of the FP32 reference against the golden outputs."""
    golden = read_golden(bundle)
    runs = [
        Run(want, ask(half, _fit(half.inputs, feeds, bundle)), _samples(bundle, feeds))
        for feeds, want in zip(golden.inputs, golden.outputs, strict=True)
    ]
    judged = _judged(bundle, half)
    evaluation = evaluate(runs, budget, "the golden sets", digest_of(golden.inputs), judged=judged)
    if reference is None:
        return evaluation, None
    kept = [bundle.manifest.varying.judged(outputs) for outputs in golden.outputs]
    answers = [reference.run(_fit(reference.inputs, feeds, bundle)) for feeds in golden.inputs]
    return evaluation, max((_off(diff) for diff in compare(kept, answers, budget).outputs), default=0.0)


def _off(diff: TensorDiff) -> float:
    """How far an output of the same model is from what it was; few boxes or choices that are others are no error."""
    if not any(reason.startswith(("boxes", "agree")) for reason in diff.exceeded):
        return diff.relative_l2
    return max(diff.relative_l2, diff.boxes or 0.0, 1.0 - (1.0 if diff.agree is None else diff.agree))


def read_golden(bundle: Bundle) -> Golden:
    """The golden sets; BundleError when they are not of this model."""
    golden = bundle.golden()
    names = {spec.name for spec in bundle.manifest.outputs}
    if not golden.inputs or any(set(feeds) != names for feeds in golden.outputs):
        raise BundleError(
            "the golden inputs and outputs are not those of this model",
            where=str(bundle.path),
            hint="export the model again",
        )
    return golden


def evaluate_data(
    bundle: Bundle,
    half: Session,
    reference: Session | None,
    budget: Budget,
    data: Data,
    metric: Metric | None = None,
    seed: int = SEED,
) -> Evaluation:
    """The user's data through both models, batch by batch, and the task metric of both."""
    if reference is None:
        raise InputError(
            "the bundle holds no FP32 reference to evaluate beside",
            where=str(bundle.path),
            hint="export it without --no-reference, or check it without --data",
        )

    def runs(reference: Session) -> Iterator[Run]:
        for batch in batches(data, bundle.manifest, reference.inputs):
            answers = ask(half, check_feeds(half.inputs, batch.feeds, cast_floats=True))
            yield Run(reference.run(batch.feeds), answers, batch.samples, batch.labels)

    digest = digest_of(data.sets, data.labels)
    return evaluate(runs(reference), budget, data.origin, digest, metric, seed, _judged(bundle, half))


def _judged(bundle: Bundle, half: Session) -> Callable[[Feeds], Feeds]:
    """What picks the outputs that can be compared: a device draws its own random numbers, the emulator those of FP32."""
    return functools.partial(bundle.manifest.varying.judged, live=half.device.kind != "cpu")


def ask(half: Session, feeds: Feeds) -> Feeds:
    """The half model's answers as numbers: BF16, which a device answers as bits, becomes the float32 it stands for."""
    bits = {spec.name for spec in half.outputs if spec.dtype is DType.BF16}
    try:
        answers = half.run(feeds)
    except InferenceError as error:
        raise InferenceError(
            f"the half model does not get through its inputs: {error.message}",
            hint="demi explain names the node by which it fails, and what drives it there",
        ) from error
    return {name: from_half(array, BF16) if name in bits else array for name, array in answers.items()}


def _samples(bundle: Bundle, feeds: Feeds) -> int:
    """How many samples a golden set is: its rows, or one where the first axis is no batch."""
    if rows_of_a_run(bundle.manifest) is None or not bundle.manifest.inputs:
        return 1
    array = feeds.get(bundle.manifest.inputs[0].name)
    return array.shape[0] if array is not None and array.ndim else 1


def _fit(specs: Sequence[TensorSpec], feeds: Feeds, bundle: Bundle) -> Feeds:
    # Half inputs are stored as half; the reference takes them in FP32.
    widened: dict[str, Array] = dict(feeds)
    try:
        return check_feeds([replace(spec) for spec in specs], widened, cast_floats=True)
    except DemiError as error:
        raise BundleError(
            f"the golden inputs do not fit the model: {error.message}",
            where=str(bundle.path),
            hint="export the model again",
        ) from error
