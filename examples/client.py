"""Query a running server for sentence vectors with `tritonclient`, and print the similarities of the sentences.

    python examples/client.py --url 127.0.0.1:8000 "A cat sleeps." "A kitten is dozing." "Rates went up."

Any client of the KServe v2 / Open Inference Protocol works the same way.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np

if not __package__:  # run as a file: its own folder is on the path, the folder above is not
    from minilm import tokenize
else:
    from examples.minilm import tokenize

INSTALL = "pip install 'demi-inference[examples]'"
WAIT_S = 180  # the first start on a CPU includes a proof
SENTENCES = (
    "A cat sleeps on the warm windowsill.",
    "A kitten is dozing in the sun.",
    "The central bank raised its interest rate.",
)


def ask(url: str, model: str, sentences: Sequence[str], *, binary: bool = True, wait_s: float = 0) -> np.ndarray:
    """Return the vectors of the sentences, float32[sentences, 384]; tensors are sent as bytes or as JSON.

    A server that is still starting has `wait_s` seconds to listen.
    """
    if find_spec("tritonclient") is None:
        sys.exit(f"error: this example needs tritonclient\nhint: {INSTALL}")
    import tritonclient.http as triton

    inputs = []
    for name, array in tokenize(sentences).items():
        tensor = triton.InferInput(name, list(array.shape), "INT64")
        tensor.set_data_from_numpy(array, binary_data=binary)
        inputs.append(tensor)
    outputs = [triton.InferRequestedOutput("embedding", binary_data=binary)]
    client = triton.InferenceServerClient(url)
    try:
        _wait_until_listening(client, time.monotonic() + wait_s)
        return np.asarray(client.infer(model, inputs, outputs=outputs).as_numpy("embedding"))
    finally:
        client.close()


def _wait_until_listening(client: Any, stop_at: float) -> None:
    while True:
        try:
            client.is_server_live()
            return
        except OSError:
            if time.monotonic() >= stop_at:
                raise
            time.sleep(0.1)


def similarities(sentences: Sequence[str], vectors: np.ndarray) -> str:
    """Return a line for each pair of sentences with their cosine similarity, the most similar first."""
    cosines = vectors @ vectors.T
    pairs = [(cosines[i, j], i, j) for i in range(len(sentences)) for j in range(i)]
    return "\n".join(f"{cosine:6.3f}  {sentences[j]} | {sentences[i]}" for cosine, i, j in sorted(pairs, reverse=True))


def main() -> None:
    """Run the example."""
    parser = argparse.ArgumentParser(description="Sentence vectors from a running server.")
    parser.add_argument("sentences", nargs="*", default=SENTENCES, help="two sentences or more (default: three)")
    parser.add_argument("--url", default="127.0.0.1:8000", metavar="HOST:PORT", help="the server (127.0.0.1:8000)")
    parser.add_argument("--model", default="minilm", metavar="NAME", help="the model's name (minilm)")
    parser.add_argument("--json", action="store_true", help="send and receive JSON, not bytes")
    args = parser.parse_args()
    try:
        vectors = ask(args.url, args.model, args.sentences, binary=not args.json, wait_s=WAIT_S)
    except Exception as error:
        sys.exit(f"error: no answer from {args.url}: {error}\nhint: start one with `demi serve models`")
    print(similarities(args.sentences, vectors))


if __name__ == "__main__":
    main()
