"""Export a trained PyTorch model to half precision, serve it, and prove that its answers are still right.

    make demo            # or: python -m examples.demo

Exports the sentence model with Demi's own commands, checks the bundle, serves it on a free port of this machine, asks
it with `tritonclient`, compares the answer with PyTorch, and stops the server. Ends with 0 when all of it held.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from examples.client import SENTENCES, ask, similarities
from examples.minilm import embed, require_packages

TOLERANCE = 5e-3
"""Largest relative L2 between the served half-precision vectors and PyTorch's."""
START_S, STOP_S = 180, 30


class DemoError(Exception):
    """A step of the demo failed."""


def run(shown: str, *command: str) -> None:
    """Print a command and run it; raise DemoError when it fails."""
    print(f"\n$ {shown}", flush=True)
    code = subprocess.run([sys.executable, *command]).returncode
    if code:
        raise DemoError(f"`{shown}` ended with exit code {code}; its message is above")


def demi(*arguments: str) -> None:
    """Run one of Demi's commands."""
    run(" ".join(["demi", *arguments]), "-m", "demi", *arguments)


@contextlib.contextmanager
def serving(models: Path, log: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """Run `demi serve` in the background on a free port while the block runs; yield its HOST:PORT."""
    print(f"\n$ demi serve {models} --port 0 2> {log} &", flush=True)
    with log.open("wb") as stream:
        command = [sys.executable, "-m", "demi", "serve", str(models), "--port", "0"]
        process = subprocess.Popen(command, stdout=stream, stderr=stream)
    try:
        yield process, _wait_for_address(process, log)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def stop(process: subprocess.Popen[bytes]) -> tuple[int, float]:
    """Send SIGTERM and wait; return the exit code and the seconds it took."""
    started = time.perf_counter()
    process.send_signal(signal.SIGTERM)
    try:
        return process.wait(STOP_S), time.perf_counter() - started
    except subprocess.TimeoutExpired as error:
        raise DemoError(f"the server did not stop within {STOP_S} s of SIGTERM") from error


def served_precision(address: str, model: str) -> str:
    """Return what the server answers in, and the reason if that is not what was exported."""
    with urllib.request.urlopen(f"http://{address}/v2/models/{model}") as answer:
        found = json.load(answer)["parameters"]
    return found["precision"] + (f" ({found['note']})" if found["precision"] == "fp32" and "note" in found else "")


def relative_l2(reference: np.ndarray, measured: np.ndarray) -> float:
    """Return ||measured - reference|| / ||reference||."""
    return float(np.linalg.norm(measured.astype(np.float64) - reference) / np.linalg.norm(reference))


def tell(work: Path) -> None:
    """Run the whole demo; raise DemoError when a step fails."""
    work.mkdir(parents=True, exist_ok=True)
    source, models = work / "minilm", work / "models"
    run(f"python examples/minilm.py --out {source}", "-m", "examples.minilm", "--out", str(source))
    sample = ("--sample", f"{source / 'samples.npz'}")
    demi("export", "--fp16", f"{source / 'model.pt2'}", *sample, "-o", f"{models / 'minilm'}", "--force")
    demi("check", f"{models / 'minilm'}")
    with serving(models, work / "server.log") as (process, address):
        print(f"listening on {address}")
        started = time.perf_counter()
        vectors = ask(address, "minilm", SENTENCES)
        asked_s = time.perf_counter() - started
        print(f"asked with tritonclient: {len(SENTENCES)} sentences, {asked_s:.1f} s with loading the tokenizer")
        print(similarities(SENTENCES, vectors))
        error = relative_l2(embed(SENTENCES), vectors)
        precision = served_precision(address, "minilm")
        code, stopped_s = stop(process)
    print(f"\nserved in {precision}, against PyTorch FP32: {error:.2g} relative L2 (at most {TOLERANCE:g})")
    print(f"server after SIGTERM: exit code {code} in {stopped_s:.1f} s")
    if not error <= TOLERANCE:
        raise DemoError(f"the served vectors are {error:.2g} away from PyTorch's (at most {TOLERANCE:g})")
    if code:
        raise DemoError(f"the server ended with exit code {code}; its log is {work / 'server.log'}")
    sizes = [(models / "minilm/1" / name).stat().st_size / 2**20 for name in ("reference.onnx", "model.onnx")]
    print(f"model on disk: {sizes[0]:.1f} MiB in FP32, {sizes[1]:.1f} MiB in half")
    print_half_here(models / "minilm")
    print("demo passed")


def print_half_here(model: Path) -> None:
    """Print what half is worth on this machine.

    `demi bench` measures in OpenVINO if the proof on this machine is right, and else in ONNX Runtime.
    """
    command = [sys.executable, "-m", "demi", "bench", str(model), "--batch", "1,8", "--seconds", "2", "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise DemoError(f"`demi bench` ended with exit code {done.returncode}: {done.stderr}")
    for line in half_here(json.loads(done.stdout)):
        print(line)


def half_here(found: dict[str, Any]) -> Iterator[str]:
    """Yield how much faster and smaller half is on this machine, and its real error beside the predicted one; or why not.

    `found` is what `demi bench --json` prints.
    """
    yield f"half on this machine ({found['machine']}):"
    for timed in found["batches"]:
        yield f"  batch of {timed['half']['batch']}: {timed['speedup']:.2f} times as fast as FP32"
    fp32, half = (found["memory"][side]["own_bytes"] for side in ("fp32", "half"))
    if fp32 and half:
        yield f"  memory without mapped files: {fp32 / 2**20:.0f} MiB in FP32, {half / 2**20:.0f} MiB in half"
    if found["outputs_emulated"] is None:
        yield "  no FP16 hardware that OpenVINO uses correctly was found, so its own error cannot be shown"
    else:
        real, predicted = (found[key][0]["relative_l2"] for key in ("outputs", "outputs_emulated"))
        yield f"  relative L2 from FP32: {real:.2g} on this CPU, {predicted:.2g} predicted"
    if all(timed["speedup"] < 1 for timed in found["batches"]):
        yield "  half is not faster here, so `demi serve` answers from FP32 and says why (docs/cpu.md)"


def _wait_for_address(process: subprocess.Popen[bytes], log: Path) -> str:
    stop_at = time.monotonic() + START_S
    while time.monotonic() < stop_at:
        said = log.read_text(errors="replace")
        if match := re.search(r"serving url=http://(\S+)", said):
            return match[1]
        if process.poll() is not None:
            raise DemoError(f"the server ended with exit code {process.returncode}:\n{said}")
        time.sleep(0.05)
    raise DemoError(f"the server did not start within {START_S} s; its log is {log}")


def main() -> int:
    """Run the example."""
    parser = argparse.ArgumentParser(description="Export, check, serve and ask a trained sentence model.")
    parser.add_argument("--work", type=Path, default=Path("work/demo"), help="folder to write to (work/demo)")
    work: Path = parser.parse_args().work
    require_packages("tritonclient")
    try:
        tell(work)
    except DemoError as error:
        print(f"\ndemo FAILED: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
