"""Padding: requests of different lengths share a run if the bundle declares padding, and get their own answers."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from demi.bundles.manifest import BatchSpec, PadSpec
from demi.errors import BundleError
from demi.server.models.loading import Loaded, load_bundle
from demi.server.models.model import Model
from demi.server.protocol.signature import Signature
from demi.server.scheduling.padding import Padding
from demi.server.settings import ServeSettings
from demi.tensors import parse_spec
from tests.server.bundles import write_bundle
from tests.server.fakes import PROOF, DoublingSession, until
from tests.server.processes import serving

INPUTS = parse_spec("ids:int64[batch,tokens]"), parse_spec("mask:int64[batch,tokens]")
OUTPUTS = parse_spec("each:fp32[batch,tokens]"), parse_spec("mean:fp32[batch]")
PAD = PadSpec(("tokens",), {"ids": 0, "mask": 0})

MEAN = """mean (int64[batch, tokens] ids, int64[batch, tokens] mask) => (int64[batch, tokens] each, int64[batch] total)
<int64[1] one = {1}>
{ each = Mul(ids, mask)
  total = ReduceSum<keepdims = 0>(each, one) }"""
"""A sum over the unmasked elements."""


class MaskedSession(DoublingSession):
    """Return the ids where the mask is 1, and their mean."""

    def run(self, feeds, outputs=None):
        super().run({"x": feeds["ids"].astype(np.float32), **feeds}, ["y"])
        each = (feeds["ids"] * feeds["mask"]).astype(np.float32)
        return {"each": each, "mean": each.sum(1) / np.maximum(feeds["mask"].sum(1), 1)}


def model_of(session: DoublingSession, pad: PadSpec = PAD, max_rows: int = 8) -> Model:
    """Return a ready model over a session for ids and masks."""
    session.inputs, session.outputs = INPUTS, OUTPUTS
    model = Model("m", "1", ServeSettings(max_queue=512))
    model.start(Loaded((session,), Signature(INPUTS, OUTPUTS, BatchSpec(True, max_rows, pad)), "fp16"))
    return model


def tokens(rows: int, length: int, start: int = 1) -> dict[str, np.ndarray]:
    """Return ids that differ from those of another `start`, all unmasked."""
    ids = start + np.arange(rows * length, dtype=np.int64).reshape(rows, length)
    return {"ids": ids, "mask": np.ones_like(ids)}


def answers_to(requests, pad: PadSpec = PAD) -> tuple[list, list]:
    """Return the answers to requests that arrive while the device is busy, and the shapes of the later runs."""

    async def scene():
        session = MaskedSession()
        model = model_of(session, pad)
        first = asyncio.create_task(model.infer(tokens(1, 1), ["each", "mean"], 10))
        await until(session.started.is_set)
        tasks = [asyncio.create_task(model.infer(feeds, ["each", "mean"], 10)) for feeds in requests]
        await asyncio.sleep(0.01)
        session.gate.set()
        await first
        answers = await asyncio.gather(*tasks)
        model.close()
        return answers, [run["ids"].shape for run in session.runs[1:]]

    return asyncio.run(scene())


def check(requests, answers) -> None:
    """Assert that every caller has the answer that it would get alone, in its own length."""
    for feeds, answer in zip(requests, answers, strict=True):
        np.testing.assert_array_equal(feeds["ids"].astype(np.float32), answer.outputs["each"])
        np.testing.assert_allclose(feeds["ids"].mean(1), answer.outputs["mean"], rtol=1e-6)


def test_different_lengths_share_a_run():
    """Three lengths share one run of the longest length."""
    requests = [tokens(1, 4), tokens(2, 3, 50), tokens(1, 5, 90)]
    answers, runs = answers_to(requests)

    assert [(4, 5)] == runs
    check(requests, answers)


def test_undeclared_axes_are_never_padded():
    """Axes that the manifest does not declare are never padded."""
    requests = [tokens(1, 4), tokens(1, 3, 50), tokens(1, 4, 90)]
    answers, runs = answers_to(requests, PadSpec())

    assert [(2, 4), (1, 3)] == runs
    check(requests, answers)


def test_padding_is_limited():
    """A long request is not joined with many short ones: at most half of a run is padding."""
    requests = [tokens(1, 100), *(tokens(1, 4, 500 + 10 * index) for index in range(6))]
    answers, runs = answers_to(requests)

    assert [(2, 100), (5, 4)] == runs
    check(requests, answers)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 12), st.integers(1, 20)), min_size=1, max_size=20))
def test_any_mix_of_rows_and_lengths(sizes):
    """Every caller gets its own rows in its own length, requests larger than a run included."""
    requests = [tokens(rows, length, 1000 * index + 1) for index, (rows, length) in enumerate(sizes)]
    answers, runs = answers_to(requests)

    check(requests, answers)
    assert max(rows for rows, _ in runs) <= 8
    assert sum(rows * length for rows, length in runs) <= 2 * sum(rows * length for rows, length in sizes)


@pytest.mark.parametrize(
    ("pad", "words"),
    [
        (PadSpec(("tokens",), {"ids": 0}), "input `mask` as padded, but gives no padding value"),
        (PadSpec(("words",), {"ids": 0, "mask": 0}), "axis `words` as padded, but no input has it"),
        (PadSpec(("batch",), {}), "axis `batch` as padded, but no input has it"),
        (PadSpec(("tokens",), {"ids": 0.5, "mask": 0}), "input `ids` cannot be padded with 0.5"),
        (PadSpec(("tokens",), {"ids": 0, "mask": float("nan")}), "input `mask` cannot be padded with nan"),
    ],
)
def test_a_declaration_that_does_not_fit(tmp_path, pad, words):
    """The error names the axis or input."""
    with pytest.raises(BundleError, match=words):
        Padding(Signature(INPUTS, OUTPUTS, BatchSpec(True, 8, pad)))


def test_the_declaration_is_checked_on_load(tmp_path):
    """A declaration that does not fit is found before the first request."""
    path = write_bundle(tmp_path / "b", MEAN, batch=BatchSpec(True, 8, PadSpec(("words",)), PROOF))
    with pytest.raises(BundleError, match="axis `words`"):
        load_bundle(path, ServeSettings())


def test_over_http(tmp_path):
    """A real server answers concurrent requests of many lengths with fewer runs than requests, each in its own length."""
    path = write_bundle(tmp_path / "b", MEAN, batch=BatchSpec(True, 8, PAD, PROOF))
    with serving(path, "--max-queue-delay-us", "20000") as server, ThreadPoolExecutor(8) as pool:

        def ask(index: int) -> bool:
            ids = list(range(1, 4 + index % 5))
            inputs = [
                {"name": name, "shape": [1, len(ids)], "datatype": "INT64", "data": data}
                for name, data in (("ids", ids), ("mask", [1] * len(ids)))
            ]
            body = httpx.post(server.url + "/v2/models/mean/infer", json={"inputs": inputs}).json()
            return [ids, [sum(ids)]] == [output["data"] for output in body["outputs"]]

        assert all(pool.map(ask, range(32)))
        stats = httpx.get(server.url + "/v2/models/mean/stats").json()["model_stats"][0]

    assert 32 == stats["inference_count"]
    assert stats["execution_count"] < 32
