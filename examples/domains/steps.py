"""The way of every example: prepare, train in half, export, check, time, serve, ask; with Demi's own commands."""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from demi.runtime.openvino.capability import read_cpu
from examples.demo import DemoError, demi, served_precision, serving, stop
from examples.domains.domain import HALVES, Domain, Measure, Row, Score
from examples.domains.table import table

WORK = Path("work/domains")
BATCH = 8
"""Rows of a run when speed is measured."""


def tell(domain: Domain, work: Path, steps: int | None = None) -> Row:
    """Run one example in the new folder `work`/NAME, and return its figures.

    Raises DemoError when a step fails, or when the folder exists.
    """
    started, folder = time.perf_counter(), work / domain.name
    if folder.exists():
        raise DemoError(f"{folder} exists: remove it, or choose another folder with --work")
    folder.mkdir(parents=True)
    print(f"\n# {domain.name}: {domain.data}", flush=True)
    domain.prepare(folder)
    run, models = folder / "run", folder / "models"
    demi("train", domain.task, "--steps", f"{steps or domain.steps}", *_in_half(), *domain.train, "-o", f"{run}")
    for half in HALVES:
        demi("export", f"--{half}", f"{run}", *domain.options(folder), "-o", f"{models / name_of(domain, half)}",
             "--search-seconds", "10", "--no-report")  # fmt: skip
    scores = {measure.name: _check(domain, measure, folder) for measure in domain.measures}
    rates, machine = _time(domain, models)
    answer = _serve(domain, folder)
    row = Row(
        domain=domain.name,
        data=domain.data,
        scores=scores,
        mebibytes=_sizes(domain, models),
        rows_per_second=rates,
        answer=answer,
        seconds=time.perf_counter() - started,
        machine=machine,
        date=datetime.date.today().isoformat(),
    )
    row.write(folder / "row.json")
    return row


def name_of(domain: Domain, half: str) -> str:
    """Return the name of the example's model in a half type, as the server knows it."""
    return f"{domain.name}-{half}"


def main(domain: Domain) -> int:
    """Run one example from the command line, and print its row."""
    parser = argparse.ArgumentParser(
        description=f"The {domain.name} example: trained in half, exported, served, asked."
    )
    parser.add_argument("--work", type=Path, default=WORK, help=f"folder to write to ({WORK})")
    parser.add_argument("--steps", type=int, default=domain.steps, help=f"training steps ({domain.steps})")
    args = parser.parse_args()
    try:
        row = tell(domain, args.work, args.steps)
    except DemoError as error:
        print(f"\nexample FAILED: {error}", file=sys.stderr)
        return 1
    print(table([row]))
    return 0


def _in_half() -> tuple[str, ...]:
    """Return the options of a run in BF16; a CPU without BF16 units rehearses it, at nearly the speed of FP32."""
    rehearse = () if read_cpu().has_units("bf16") else ("--rehearse",)
    return ("--precision", "bf16", *rehearse, "--inspect-every", "0", "--save-model")


def _check(domain: Domain, measure: Measure, folder: Path) -> dict[str, Score]:
    """Return a measure in both half types beside FP32; raise DemoError if a bundle fails its check."""
    bundles = [f"{folder / 'models' / name_of(domain, half)}" for half in HALVES]
    labels = ("--labels", measure.labels) if measure.labels else ()
    found = _json("check", *bundles, "--data", f"{folder / measure.data}", *labels, "--metric", measure.metric)
    scores = {half: _score(each) for half, each in zip(HALVES, found, strict=True)}
    for half, score in scores.items():
        print(f"{measure.name}: FP32 {score.fp32:.4f}, {half.upper()} {score.half:.4f}, "
              f"loss {score.low:.4f} to {score.high:.4f} (95% interval, {score.samples} samples)", flush=True)  # fmt: skip
    return scores


def _score(check: dict[str, Any]) -> Score:
    task = check["data"]["task"]
    interval = task["interval"] or {"low": task["loss"], "high": task["loss"]}
    return Score(task["fp32"], task["half"], interval["low"], interval["high"], check["data"]["samples"])


def _time(domain: Domain, models: Path) -> tuple[dict[str, float], str]:
    """Return the rows a second of the model alone in each type, and the machine. FP32 is the mean of two pairs."""
    rates: dict[str, list[float]] = {"fp32": []}
    machine = ""
    for half in HALVES:
        found = _json("bench", f"{models / name_of(domain, half)}", "--batch", f"{BATCH}", "--seconds", "1")
        (timed,) = found["batches"]
        machine = found["machine"]
        rates["fp32"].append(1000 * timed["fp32"]["batch"] / timed["fp32"]["p50_ms"])
        rates[half] = [1000 * timed["half"]["batch"] / timed["half"]["p50_ms"]]
    return {precision: sum(each) / len(each) for precision, each in rates.items()}, machine


def _serve(domain: Domain, folder: Path) -> str:
    """Serve both bundles, ask each with a file, and return the answer in FP16."""
    answers = {}
    with serving(folder / "models", folder / "server.log") as (process, address):
        for half in HALVES:
            name = name_of(domain, half)
            answers[half] = domain.ask(address, name, folder)
            print(f"{name}, served in {served_precision(address, name)}: {answers[half]}", flush=True)
        code, _ = stop(process)
    if code:
        raise DemoError(f"the server ended with exit code {code}; its log is {folder / 'server.log'}")
    return answers["fp16"]


def _sizes(domain: Domain, models: Path) -> dict[str, float]:
    """Return the sizes of the model's files in MiB."""
    first = models / name_of(domain, HALVES[0]) / "1"
    files = {half: models / name_of(domain, half) / "1" / "model.onnx" for half in HALVES}
    return {name: path.stat().st_size / 2**20 for name, path in {"fp32": first / "reference.onnx", **files}.items()}


def _json(*arguments: str) -> Any:
    """Print one of Demi's commands, run it with `--json`, and return what it prints; raise DemoError when it fails."""
    shown = " ".join(["demi", *arguments])
    print(f"\n$ {shown}", flush=True)
    command = [sys.executable, "-m", "demi", *arguments, "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise DemoError(f"`{shown}` ended with exit code {done.returncode}; its message is above")
    return json.loads(done.stdout)
