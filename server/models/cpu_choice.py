"""Choice of model and runtime on a CPU: half in OpenVINO if a proof made on this machine shows that it pays, else FP32.

ONNX Runtime has no half kernels for CPUs: half is slower there than the FP32 model, and less accurate. It is therefore
served only on request (`--precision half`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from demi.bundles.bundle import Bundle
from demi.errors import DeviceError
from demi.proofs.prove import Proving, known_proof, proof_of
from demi.proofs.record import NO_OPENVINO, SCHEMA, Proof, Road, place_of
from demi.runtime.cores import is_confined, usable_cores
from demi.server.models.computed import IN_FP32
from demi.server.settings import ServeSettings

log = logging.getLogger("demi.server")

Prove = Callable[[Bundle, int, ServeSettings], Proof]
"""Returns the proof of a bundle for runs with that many threads."""

BF16_ON_CPU = "a bf16 model cannot run on the CPU with ONNX Runtime"
NO_HALF = "ONNX Runtime has no half kernels for the CPU"
COMPUTED_IN_FP32 = "ONNX Runtime computes half nodes in FP32 on a CPU, where nothing overflows: serve with --emulate for a GPU's answers"


@dataclass(frozen=True, slots=True)
class Choice:
    """ONNX file of a bundle, the precision it computes in, and how OpenVINO runs it (`road`; None for ONNX Runtime).

    `note` is the reason why it is not served as exported, or the result of its proof.
    """

    path: Path
    precision: str
    road: Road | None = None
    note: str = ""

    @property
    def runtime(self) -> str:
        """Name of the runtime on a CPU."""
        return "openvino" if self.road else "onnxruntime"


def prove_here(bundle: Bundle, threads: int, settings: ServeSettings) -> Proof:
    """Return the proof beside a bundle, or make one now in another process."""
    return proof_of(bundle, threads, settings.engine_key)


def proved_before(bundle: Bundle, threads: int, settings: ServeSettings) -> Proof:
    """Return the proof beside a bundle, or an empty one: for a process that is itself a trial load."""
    proving = Proving()
    place = place_of(bundle, proving.cpu, proving.openvino or NO_OPENVINO, threads)
    found = known_proof(bundle, place, settings.engine_key) if proving.openvino else None
    return found or Proof(SCHEMA, place, str(proving.cpu), bundle.manifest.precision, (), "nothing was proved here yet")


def choose_on_cpu(bundle: Bundle, settings: ServeSettings, prove: Prove) -> Choice:
    """Return the model to serve on a CPU, according to `--runtime`, `--precision` and the proof.

    Raises DeviceError if the settings require what is not available.
    """
    if settings.runtime == "onnxruntime":
        return _in_onnxruntime(bundle, settings, BF16_ON_CPU if bundle.manifest.precision == "bf16" else NO_HALF)
    proof = prove(bundle, threads_of_a_run(settings), settings)
    best, insists = proof.best, settings.runtime == "openvino" or settings.precision == "half"
    if best is not None and (proof.pays or insists):
        log.info("%s: %s", bundle.manifest.name, proof.verdict())
        return Choice(bundle.path / best.road.file, bundle.manifest.precision, best.road, proof.verdict())
    if settings.runtime == "openvino":
        raise DeviceError(f"--runtime openvino: {proof.verdict()}", hint="use --runtime auto or onnxruntime")
    return _in_onnxruntime(bundle, settings, proof.verdict())


def threads_of_a_run(settings: ServeSettings) -> int:
    """Return the threads of one run on a CPU: from the settings, or an equal share of the cores for each instance."""
    return session_threads(settings) or usable_cores()


def session_threads(settings: ServeSettings) -> int:
    """Return the threads of a session; 0 lets it use one per core."""
    on_cpu = sum(device.kind == "cpu" for device in settings.places) or 1
    return settings.threads or (max(1, usable_cores() // on_cpu) if on_cpu > 1 or is_confined() else 0)


def _in_onnxruntime(bundle: Bundle, settings: ServeSettings, why: str) -> Choice:
    """Return the FP32 reference, or half if the settings require it or the bundle holds nothing else."""
    name, precision, reference = bundle.manifest.name, bundle.manifest.precision, bundle.reference_path
    if precision == "bf16" and (settings.precision == "half" or reference is None):
        missing = "" if reference else ", and the bundle holds no FP32 reference to serve instead"
        raise DeviceError(
            f"{BF16_ON_CPU}{missing}",
            hint="serve it with --device cuda"
            + (", or with --precision auto" if reference else ", or export it with its reference"),
        )
    if settings.precision == "half":
        return Choice(bundle.model_path, precision + IN_FP32, note=COMPUTED_IN_FP32)
    if reference is None:
        log.warning("%s: served in %s without an FP32 reference to be faster: %s", name, precision, why)
        return Choice(bundle.model_path, precision + IN_FP32, note=why)
    note = f"the FP32 reference serves: {why}"
    log.warning("%s: %s (--precision half insists on %s)", name, note, precision)
    return Choice(reference, "fp32", note=note)
