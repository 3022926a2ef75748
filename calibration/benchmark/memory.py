"""Measure the memory of a model in a separate process.

`python -m demi.calibration.benchmark.memory BUNDLE FILE DEVICE BATCH` is that process: it imports everything it needs,
measures its memory, loads and runs the model, and prints the memory that this added as JSON.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import msgspec

from demi.bundles.bundle import Bundle, open_bundle
from demi.calibration.benchmark.timing import fit
from demi.engines import record as engine_records
from demi.engines.open import require_built_engine
from demi.errors import CrashError, DemiError, InferenceError
from demi.processes.crash import died
from demi.proofs.attempt import open_road
from demi.proofs.record import Road
from demi.proofs.turns import with_batch
from demi.runtime.base import Device, Session
from demi.runtime.cores import usable_cores
from demi.runtime.onnxruntime.session import open_session, require_runtime
from demi.runtime.openvino.session import capabilities

OPENVINO = "openvino:"
"""Prefix of a model that OpenVINO runs: `openvino:PRECISION:FILE`, as in `openvino:dynamic:model.onnx`."""

ENGINE = f"{engine_records.FOLDER}/{engine_records.ENGINE}"
"""Path of a bundle's TensorRT engine, in place of a model's file."""

RUNS = 3
"""Runs before the peak is read: the runtime's arena grows in the first runs."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes that a model adds to its process; None where the system does not report them."""

    loaded_bytes: int | None
    """Resident bytes after the session was opened, before its first run."""
    peak_bytes: int | None
    """Peak of resident bytes while loading and running a few batches."""
    device_bytes: int | None = None
    """Bytes of the process on the GPU, as the driver reports them, including the CUDA context."""
    own_bytes: int | None = None
    """Bytes at the end that the process alone holds and has written: no pages of files, which the system may take back."""


def measure_memory(bundle: Bundle, file: str, device: Device, batch: int) -> Memory:
    """Measure one model of a bundle, its `ENGINE` or a road of `OPENVINO`, in a separate process.

    Raises InferenceError with the last line of the process's output when it fails, and CrashError when it crashes.
    """
    command = [
        sys.executable,
        "-m",
        "demi.calibration.benchmark.memory",
        str(bundle.path),
        file,
        str(device),
        str(batch),
    ]
    paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": paths})
    if done.returncode < 0:
        error = died(done.returncode, f"measuring `{file}` in a separate process")
        raise CrashError(error.message, where=str(bundle.path), hint=error.hint)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"])[-1]
        raise InferenceError(f"`{file}` could not be measured in a separate process: {last}", where=str(bundle.path))
    return msgspec.json.decode(done.stdout, type=Memory)


def main(folder: str, file: str, device_name: str, batch: int) -> Memory:
    """Load and run one model in this process, and return the memory that this added."""
    bundle, device = open_bundle(Path(folder), verify=False), Device.parse(device_name)
    feeds = bundle.golden().inputs[0]
    if bundle.manifest.batch.free:
        feeds = with_batch(feeds, bundle.manifest.inputs, batch)
    capabilities() if file.startswith(OPENVINO) else require_runtime()  # with the code of either
    _forget_peak()
    before, own_before = resident(), own()
    session = _open(bundle, file, device)
    loaded = resident()
    fitted = fit(session, feeds)
    for _ in range(RUNS):
        session.run(fitted)
    peak = resident("VmHWM")
    if before is None or loaded is None or peak is None:
        return Memory(None, None, device_bytes(device))
    own_after = own()
    owned = max(own_after - own_before, 0) if own_after is not None and own_before is not None else None
    return Memory(max(loaded - before, 0), max(peak - before, 0), device_bytes(device), owned)


def _open(bundle: Bundle, file: str, device: Device) -> Session:
    if file.startswith(OPENVINO):
        return open_road(bundle, road_of(file), usable_cores())[0]
    return require_built_engine(bundle, device).session if file == ENGINE else open_session(bundle.path / file, device)


def named(road: Road) -> str:
    """A road as the name of a file."""
    return f"{OPENVINO}{road.hint}:{road.file}"


def road_of(file: str) -> Road:
    """The road that `named` has named."""
    hint, _, model = file.removeprefix(OPENVINO).partition(":")
    return msgspec.convert({"file": model, "hint": hint}, Road)


def resident(field: str = "VmRSS") -> int | None:
    """Return this process's resident bytes (`VmHWM`: their peak) on Linux; None elsewhere."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    found = re.search(rf"^{field}:\s+(\d+) kB", status, re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def own() -> int | None:
    """Return the bytes that this process alone holds and has written; None where the system does not report them."""
    try:
        lines = Path("/proc/self/smaps_rollup").read_text()
    except OSError:
        return None
    found = re.search(r"^Private_Dirty:\s+(\d+) kB", lines, re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def _forget_peak() -> None:
    with contextlib.suppress(OSError):  # not allowed everywhere; the peak then includes what came before
        Path("/proc/self/clear_refs").write_text("5")


def device_bytes(device: Device) -> int | None:
    """Return this process's bytes on GPUs from `nvidia-smi`; None on a CPU or where it reports nothing."""
    if device.kind == "cpu":
        return None
    query = ["nvidia-smi", "--query-compute-apps=pid,used_gpu_memory", "--format=csv,noheader,nounits"]
    try:
        listed = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return held_by(os.getpid(), listed)


def held_by(pid: int, listed: str) -> int | None:
    """Return the bytes of one process from lines `pid, MiB`; None when it is not listed, as often in containers."""
    found = re.findall(rf"^\s*{pid}\s*,\s*(\d+)\s*$", listed, re.MULTILINE)
    return sum(map(int, found)) * 2**20 if found else None


if __name__ == "__main__":
    try:
        found = main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
    except DemiError as error:
        sys.exit(error.message)
    sys.stdout.write(msgspec.json.encode(found).decode())
