"""`demi bench`: compare FP32 and half of one bundle in time, memory, size and accuracy."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass

from demi.accuracy.compare import Comparison, compare
from demi.bundles import manifest as manifests
from demi.bundles.bundle import Bundle, Golden
from demi.calibration.benchmark.memory import ENGINE, OPENVINO, Memory, measure_memory, named, road_of
from demi.calibration.benchmark.timing import SideBySide, fit, time_side_by_side
from demi.calibration.gate.bundle_sessions import half_session
from demi.errors import BundleError, DeviceError, InputError
from demi.progress import Step, silent
from demi.proofs.attempt import answers, open_road
from demi.proofs.record import Road
from demi.proofs.turns import with_batch
from demi.runtime.base import Device, Session
from demi.runtime.cores import usable_cores
from demi.runtime.onnxruntime.session import open_session, runtime_version
from demi.runtime.openvino.session import openvino_version
from demi.tensors import Feeds


@dataclass(frozen=True, slots=True)
class Side:
    """Size and memory of one of the two models."""

    file_bytes: int
    """Bytes on disk, external weights included."""
    memory: Memory


@dataclass(frozen=True, slots=True)
class Benchmark:
    """All measurements of one bundle on one device."""

    bundle: str
    name: str
    version: int
    precision: str
    device: str
    machine: str
    """Description of processor, system and runtime."""
    batches: tuple[SideBySide, ...]
    fp32: Side
    half: Side
    comparison: Comparison
    """Half against FP32 on the golden inputs."""
    measured_by: str
    """Description of what computed in half: the emulator, or the device itself."""
    varying: tuple[str, ...] = ()
    """One line for each output that differs from run to run in FP32 itself."""
    emulated: Comparison | None = None
    """The emulator's prediction for the half model, if the CPU itself computed in half."""


def bench_bundle(
    bundle: Bundle,
    device: Device,
    batches: Sequence[int],
    seconds: float,
    step: Step = silent,
    engine: Session | None = None,
    road: Road | None = None,
) -> Benchmark:
    """Time both models, alternating, at each batch size, measure their memory, and compare their outputs.

    An `engine` takes the place of the half model; with a `road`, OpenVINO runs it. A model with a fixed batch is timed at that size only. Raises
    BundleError without a reference, DeviceError for a missing device and for BF16 on a CPU, and InputError for a batch
    that does not fit into memory.
    """
    _check(bundle, device, road)
    golden = bundle.golden()
    sizes = batches if bundle.manifest.batch.free else [_rows(golden)]
    assert bundle.reference_path is not None
    fp32, half = open_session(bundle.reference_path, device), engine or _open_half(bundle, device, road)
    timed = []
    for size in sizes:
        with step(f"timing batches of {size}"):
            feeds = _with_rows(golden)
            try:
                sized = with_batch(feeds, bundle.manifest.inputs, size) if bundle.manifest.batch.free else feeds
                timed.append(time_side_by_side(fp32, half, sized, size, seconds))
            except MemoryError as error:
                raise InputError(f"not enough memory for batches of {size:,}", hint="use smaller batches") from error
    with step("comparing the outputs"):
        comparison, measured_by = _compare(bundle, golden, half, device, road)
        emulated = _emulated(bundle, golden) if road else None
    with step("measuring memory"):
        sides = [
            Side(_file_bytes(bundle, file), measure_memory(bundle, file, device, max(sizes)))
            for file in (manifests.REFERENCE, ENGINE if engine else named(road) if road else manifests.MODEL)
        ]
    return Benchmark(
        bundle=str(bundle.path),
        name=bundle.manifest.name,
        version=bundle.manifest.version,
        precision=bundle.manifest.precision,
        device=str(device),
        machine=f"{processor()}, {platform.system()}, ONNX Runtime {runtime_version()}"
        + (", TensorRT" if engine else f", OpenVINO {openvino_version()}" if road else ""),
        batches=tuple(timed),
        fp32=sides[0],
        half=sides[1],
        comparison=comparison,
        measured_by=measured_by,
        varying=tuple(bundle.manifest.varying.describe(live=device.kind != "cpu" or road is not None)),
        emulated=emulated,
    )


def _open_half(bundle: Bundle, device: Device, road: Road | None) -> Session:
    return open_road(bundle, road, usable_cores())[0] if road else open_session(bundle.model_path, device)


def _check(bundle: Bundle, device: Device, road: Road | None) -> None:
    bundle.require_proof()
    if bundle.reference_path is None:
        raise BundleError(
            "the bundle holds no FP32 reference to compare with",
            where=str(bundle.path),
            hint="export it without --no-reference",
        )
    if bundle.manifest.precision == "bf16" and device.kind == "cpu" and road is None:
        raise DeviceError(
            "ONNX Runtime has no bfloat16 kernels on the CPU",
            hint="time this bundle in OpenVINO, on a GPU with --device cuda, or export with --fp16",
        )


def _with_rows(golden: Golden) -> Feeds:
    """Return the first golden set without an empty tensor, or else the first one."""
    return next((feeds for feeds in golden.inputs if all(array.size for array in feeds.values())), golden.inputs[0])


def _rows(golden: Golden) -> int:
    first = next(iter(_with_rows(golden).values()), None)
    return first.shape[0] if first is not None and first.ndim else 1


def _compare(
    bundle: Bundle, golden: Golden, half: Session, device: Device, road: Road | None
) -> tuple[Comparison, str]:
    """Half against FP32: by the emulator where ONNX Runtime converts to FP32 on a CPU, else by what computed it."""
    if road is not None:
        return answers(bundle, half), f"computed on {device} by OpenVINO"
    if device.kind == "cpu":
        return _emulated(bundle, golden), "by the half-precision emulator"
    measured = [half.run(fit(half, feeds)) for feeds in golden.inputs]
    expected = [bundle.manifest.varying.comparable(each, live=True) for each in golden.outputs]
    return compare(expected, measured, bundle.manifest.budget), f"computed on {device}"


def _emulated(bundle: Bundle, golden: Golden) -> Comparison:
    """The half model under the emulator, against FP32."""
    with half_session(bundle) as emulated:
        measured = [emulated.run(fit(emulated, feeds)) for feeds in golden.inputs]
    expected = [bundle.manifest.varying.comparable(each) for each in golden.outputs]
    return compare(expected, measured, bundle.manifest.budget)


def _file_bytes(bundle: Bundle, file: str) -> int:
    if file == ENGINE:  # the manifest does not list engines
        return (bundle.path / file).stat().st_size
    file = road_of(file).file if file.startswith(OPENVINO) else file
    entries = bundle.manifest.files
    return sum(entry.bytes for name, entry in entries.items() if name in (file, f"{file}.data"))


def processor() -> str:
    """Return the number of cores and the processor's name, as far as the system reports them."""
    try:
        with open("/proc/cpuinfo") as lines:
            names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    except OSError:
        names = []
    return f"{len(names)} cores of {names[0]}" if names else platform.processor() or platform.machine()
