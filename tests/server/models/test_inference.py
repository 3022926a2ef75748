"""Texts of several clients share runs, padded to the longest where the bundle has the proof, and get their own answers."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace

import numpy as np
import pytest

from demi.bundles.manifest import PadSpec
from demi.processing.prepared import RawRows
from demi.server.models.inference import infer
from demi.server.models.loading import load_bundle
from demi.server.models.model import Model
from demi.server.protocol.request import InferRequest, OutputRequest
from demi.server.settings import ServeSettings
from tests.raw_inputs import write_raw_bundle
from tests.server.fakes import until

WORDS = ("a", "cat", "sat", "down", "Paris")
TEXTS = [" ".join(WORDS[: 1 + length % 5]) for length in range(8)]
"""Texts of 3 to 7 tokens, [CLS] and [SEP] included."""


class GatedSession:
    """A real session that waits for `gate` before each run, and records the shapes of what it ran."""

    def __init__(self, session):
        self.session, self.gate, self.started = session, threading.Event(), threading.Event()
        self.inputs, self.outputs, self.device = session.inputs, session.outputs, session.device
        self.shapes = []

    def run(self, feeds, outputs=None):
        """Wait, and run."""
        self.started.set()
        self.gate.wait(10)
        self.shapes.append(feeds["input_ids"].shape)
        return self.session.run(feeds, outputs)


def answers_to(path, texts, output, *, pads=True):
    """Return the answers to texts that arrive while the device is busy, one a request, and the shapes of their runs."""
    loaded = load_bundle(path, ServeSettings())
    session = GatedSession(loaded.session)
    signature = loaded.signature
    if not pads:
        signature = replace(signature, batch=replace(signature.batch, pad=PadSpec()))

    async def scene():
        model = Model("m", "1", ServeSettings())
        model.start(replace(loaded, sessions=(session,), signature=signature))

        def ask(text):
            request = InferRequest({}, (OutputRequest(output, binary=False),), raw=RawRows((text,)))
            return asyncio.create_task(infer(model, request, 10))

        first = ask("Paris")
        await until(session.started.is_set)
        tasks = [ask(text) for text in texts]
        await asyncio.sleep(0.01)
        session.gate.set()
        await first
        answers = [(await task).outputs[output] for task in tasks]
        model.close()
        return answers, session.shapes[1:]

    return asyncio.run(scene())


@pytest.mark.parametrize(("name", "output"), [("embed", "embedding"), ("sentiment", "scores")])
def test_texts_of_different_lengths_share_a_run(tmp_path, name, output):
    """Eight requests are one run of the longest; each answer is the one that its text gets alone."""
    path = write_raw_bundle(tmp_path / name / "1", name)
    alone = [answers_to(path, [text], output)[0][0] for text in TEXTS]

    together, runs = answers_to(path, TEXTS, output)

    assert [(8, 7)] == runs
    np.testing.assert_allclose(together, alone, rtol=1e-6)
    assert len({each.tobytes() for each in together}) == 5


def test_without_the_proof_each_length_runs_alone(tmp_path):
    """Nothing is padded that was not tried."""
    path = write_raw_bundle(tmp_path / "embed" / "1", "embed")
    together, runs = answers_to(path, TEXTS, "embedding", pads=False)

    assert [(2, 3), (2, 4), (2, 5), (1, 6), (1, 7)] == runs
    np.testing.assert_allclose(together, answers_to(path, TEXTS, "embedding")[0], rtol=1e-6)
