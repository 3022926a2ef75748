"""Joining and splitting requests: only if the bundle holds the proof that rows are independent."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from demi.bundles.manifest import BatchSpec
from demi.server.http.console.cards import Cards
from demi.server.models.describe import configure_model, describe_model
from demi.server.models.loading import Loaded, load_bundle
from demi.server.models.model import Model
from demi.server.protocol.signature import Signature
from demi.server.settings import ServeSettings
from demi.tensors import Feeds, parse_spec
from tests.server.bundles import SCALE, write_bundle
from tests.server.fakes import PROOF, DoublingSession
from tests.server.processes import serving

SETTINGS = ServeSettings()

NO_PROOF = "the bundle holds no proof that its rows do not depend on each other; export the model again"

SOFTMAX = """softmax (float[batch, 3] x) => (float[batch, 3] y)
{ y = Softmax<axis = 0>(x) }"""
"""A model whose rows depend on each other."""


def model_at(path: Path) -> Model:
    """A bundle and its model, being served."""
    model = Model("m", "1", SETTINGS)
    model.start(load_bundle(path, SETTINGS))
    return model


@pytest.fixture
def started(tmp_path):
    """Return a function that serves a model from its text and batch declaration."""
    models = []

    async def start(text: str, batch: BatchSpec | None = None) -> Model:
        models.append(model_at(write_bundle(tmp_path / str(len(models)), text, batch=batch)))
        return models[-1]

    yield start
    for model in models:
        model.close()


def bodies(model: Model) -> tuple[int, str, str]:
    """Return the largest batch of a model's configuration, the batching of its metadata, and that of its card."""
    described = describe_model(model, ["1"], SETTINGS)
    return configure_model(model).max_batch_size, described.parameters["batching"], Cards().card(model, None).batching


@pytest.mark.parametrize(
    ("batch", "largest", "words"),
    [
        (BatchSpec(True, 4, proof=PROOF), 4, "up to 4 rows a run"),
        (BatchSpec(True, 4), 0, f"off: {NO_PROOF}"),
        (BatchSpec(False, 4), 0, f"off: {NO_PROOF}"),
        (BatchSpec(False, 4, why_not="`y` is <a> scalar"), 0, "off: `y` is <a> scalar"),
        (BatchSpec(False, 4, proof=PROOF), 0, f"off: {NO_PROOF}"),
    ],
)
def test_batching_is_reported(started, caplog, batch, largest, words):
    """Configuration, metadata and card agree, and the log holds the reason if nothing is joined."""

    caplog.set_level("INFO")

    async def asked() -> tuple[int, str, str]:
        return bodies(await started(SCALE, batch))

    found, described, card = asyncio.run(asked())

    assert (largest, words, words) == (found, described, card)
    logged = [record.levelname for record in caplog.records if "neither joined nor split" in record.getMessage()]
    assert logged == ([] if largest else ["INFO" if batch.why_not else "WARNING"])


def test_a_bundle_without_a_proof_runs_requests_whole(started):
    """A bundle of an older version declares axis 0 as free without a proof: each request is a run of its own."""

    async def asked() -> tuple[list[Feeds], int]:
        model = await started(SCALE, BatchSpec(free=True, max_size=2))
        rows = [np.full((count, 3), count, np.float32) for count in (1, 1, 9)]
        answers = await asyncio.gather(*(model.infer({"x": x}, ["y"], 5) for x in rows))
        return [answer.outputs for answer in answers], model.statistics.execution_count

    answers, runs = asyncio.run(asked())

    assert [(1, 3), (1, 3), (9, 3)] == [answer["y"].shape for answer in answers]
    assert 3 == runs


def test_rows_that_depend_on_each_other_over_http(tmp_path):
    """Concurrent requests get the answers that each gets alone, in a run of its own."""
    write_bundle(tmp_path / "softmax/1", SOFTMAX)
    with serving(tmp_path, "--max-queue-delay-us", "20000") as server, httpx.Client(base_url=server.url) as client:

        def ask(count: int) -> list[float]:
            data = [float(at % 3) for at in range(3 * count)]
            inputs = [{"name": "x", "shape": [count, 3], "datatype": "FP32", "data": data}]
            found = client.post("/v2/models/softmax/infer", json={"inputs": inputs}).json()
            return list(found["outputs"][0]["data"])

        async def at_once() -> list[list[float]]:
            return await asyncio.gather(*(asyncio.to_thread(ask, count) for count in [1, 2, 40] * 5))

        for count, found in zip([1, 2, 40] * 5, asyncio.run(at_once()), strict=True):
            np.testing.assert_allclose(found, np.full(3 * count, 1 / count), rtol=1e-5)
        stats = client.get("/v2/models/softmax/stats").json()["model_stats"][0]

    assert 15 == stats["execution_count"]


def test_classification_of_rows_that_are_not_joined(tmp_path):
    """The largest elements are still found per row if the model's axes define rows."""
    write_bundle(tmp_path / "softmax/1", SOFTMAX)
    with serving(tmp_path) as server:
        inputs = [{"name": "x", "shape": [2, 3], "datatype": "FP32", "data": [0, 1, 2, 2, 1, 0]}]
        outputs = [{"name": "y", "parameters": {"classification": 1}}]
        body = {"inputs": inputs, "outputs": outputs}
        found = httpx.post(server.url + "/v2/models/softmax/infer", json=body).json()["outputs"][0]

    assert [2, 1] == found["shape"]
    assert ["2", "0"] == [label.split(":")[1] for label in found["data"]]


@dataclasses.dataclass
class TwoTowers(DoublingSession):
    """Doubles `a` and triples `b`, whose numbers of rows may differ."""

    inputs: Sequence = (parse_spec("a:fp32[n,2]"), parse_spec("b:fp32[k,2]"))
    outputs: Sequence = (parse_spec("y:fp32[n,2]"), parse_spec("z:fp32[n,2]"))

    def run(self, feeds, outputs=None):
        self.runs.append(feeds)
        found = {"y": feeds["a"] * np.float32(2), "z": feeds["b"] * np.float32(3)}
        return {name: found[name] for name in outputs or found}


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 9), st.one_of(st.none(), st.integers(1, 9))), min_size=1, max_size=12))
def test_inputs_with_different_numbers_of_rows(counts):
    """Requests with equally many rows in every input share runs; others run alone, and all get their own answers."""

    async def asked() -> list[Feeds]:
        session = TwoTowers()
        model = Model("m", "1", SETTINGS)
        signature = Signature(tuple(session.inputs), tuple(session.outputs), BatchSpec(True, 4, proof=PROOF))
        model.start(Loaded((session,), signature, "fp16"))
        answers = await asyncio.gather(*(model.infer(feeds, ["y", "z"], 5) for feeds in requests))
        model.close()
        assert all(len(feeds["a"]) <= 4 for feeds in session.runs if len(feeds["a"]) == len(feeds["b"])), (
            "a run with more rows than the model takes"
        )
        return [answer.outputs for answer in answers]

    requests = [
        {
            "a": np.full((a, 2), index, np.float32) + np.arange(a, dtype=np.float32)[:, None] / 16,
            "b": np.full((b or a, 2), -index, np.float32) + np.arange(b or a, dtype=np.float32)[:, None] / 16,
        }
        for index, (a, b) in enumerate(counts)
    ]
    for feeds, found in zip(requests, asyncio.run(asked()), strict=True):
        np.testing.assert_array_equal(feeds["a"] * 2, found["y"])
        np.testing.assert_array_equal(feeds["b"] * 3, found["z"])
