"""Greedy generation in tokens a second, beside transformers in eager FP32: models of the shapes of T5-small and Whisper-tiny.

    python -m bench.generation t5-small --bf16
    python -m bench.generation whisper-tiny --bf16 --tokens 64 --rounds 5
    python -m bench.generation t5-small --fp16

The weights are random, drawn with a fixed seed: speed depends on shapes only, and the share of tokens that half chooses as
FP32 does is lower than for trained weights, whose decisions are clearer. The model is exported once into `--work`, where a
later run finds it. All subjects are measured in one run, in alternating turns with as many threads; the ratio is the
median of the rounds' ratios. Prints a Markdown table; names the CPU.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median

import demi
from bench.generation_models import SHAPES, Subject, make_folder
from demi.runtime.cores import usable_cores
from demi.runtime.openvino.capability import read_cpu


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("shape", choices=sorted(SHAPES))
    half = parser.add_mutually_exclusive_group(required=True)
    half.add_argument("--bf16", dest="precision", action="store_const", const="bf16")
    half.add_argument("--fp16", dest="precision", action="store_const", const="fp16")
    parser.add_argument("--tokens", type=int, default=64, help="new tokens of each text")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--work", type=Path, default=Path("build/generation"), help="folder for the models")
    args = parser.parse_args()
    subject = make_folder(args.shape, args.work / args.shape)
    bundle = _bundle(subject, args.work, args.precision)
    runs = _runs(subject, bundle, args)
    speeds = _measured(runs, args.rounds, args.tokens)
    print(f"{args.shape}, {args.precision}, {args.tokens} tokens a text, {args.threads} threads, {read_cpu().name}\n")
    print("| subject | tokens/s | of transformers |\n| --- | ---: | ---: |")
    for name, each in speeds.items():
        ratio = median(one / base for one, base in zip(each, speeds["transformers FP32"], strict=True))
        print(f"| {name} | {median(each):,.0f} | {ratio:.2f} |")
    agreement = demi.load(bundle, precision="fp32").accuracy["generation"]
    print(f"\ntokens like FP32 (emulated {args.precision}): {agreement['same']:.2%} of {agreement['tokens']}")


def _bundle(subject: Subject, work: Path, precision: str) -> Path:
    """Return the bundle of a model, exported unless it is there."""
    place = work / "models" / f"{subject.folder.name}-{precision}"
    if not (place / "1" / "manifest.json").is_file():
        demi.export(
            subject.folder, place, precision=precision, task=subject.task, samples=str(subject.samples), report=False
        )
    return place / "1"


def _runs(subject: Subject, bundle: Path, args: argparse.Namespace) -> Mapping[str, Callable[[], int]]:
    """Return what is measured: each generates one text and returns the number of its tokens."""
    import torch

    torch.set_num_threads(args.threads)
    theirs = subject.transformers(args.tokens)
    fp32 = demi.load(bundle, precision="fp32", threads=args.threads)
    auto = demi.load(bundle, threads=args.threads)
    half = demi.load(bundle, precision="half", threads=args.threads)

    def ours(model: demi.Model) -> Callable[[], int]:
        def run() -> int:
            model.generate(**subject.raw, max_tokens=args.tokens)
            return args.tokens

        return run

    return {
        "transformers FP32": theirs,
        "demi FP32": ours(fp32),
        f"demi half ({half.runtime})": ours(half),
        f"demi as served ({auto.precision}, {auto.runtime})": ours(auto),
    }


def _measured(runs: Mapping[str, Callable[[], int]], rounds: int, tokens: int) -> dict[str, list[float]]:
    """Return the tokens a second of each subject in each round; the first, which warms up, does not count."""
    found: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 1):
        for name, run in runs.items():
            started = time.perf_counter()
            made = run()
            elapsed = time.perf_counter() - started
            if made != tokens:
                raise SystemExit(f"{name} generated {made} tokens, not {tokens}")
            if turn:
                found[name].append(made / elapsed)
    return found


if __name__ == "__main__":
    main()
