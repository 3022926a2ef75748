"""The guard: answers that half precision alone made NaN or infinite are computed again in FP32."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest

from demi.bundles.manifest import BatchSpec
from demi.errors import SourceError
from demi.server.accuracy.fingerprint import fingerprint
from demi.server.accuracy.guarded_inputs import save_inputs, write_inputs
from demi.server.errors import NonFiniteError, RequestError
from demi.server.models.loading import Loaded
from demi.server.models.model import Model
from demi.server.protocol.answer import Answer, RequestedPrecision
from demi.server.protocol.signature import Signature
from demi.server.scheduling.inspection import same_non_finite
from demi.server.settings import ServeSettings
from demi.tensors import Feeds
from tests.server.bundles import GOLDEN_X, SCALE, write_bundle
from tests.server.fakes import DoublingSession, message, open_fake
from tests.server.processes import serving

ROW: Feeds = {"x": np.ones((1, 3), np.float32)}
LARGE: Feeds = {"x": np.full((1, 3), 60_000, np.float32)}

OVERFLOWING = """scale (float[batch, 3] x) => (float[batch, 3] y)
<float[3] w = {2.0, 2.0, 2.0}, int64[2] shape = {-1, 3}>
{ product = Mul(x, w)
  half = Cast<to = 10>(product)
  kept = Reshape(half, shape)
  y = Cast<to = 1>(kept) }"""
"""Doubles in FP16: infinite beyond 32,752, on a CPU too, since Reshape has a half kernel there."""

DOUBLE = SCALE.replace("{2.0, 3.0, 4.0}", "{2.0, 2.0, 2.0}")


class HalfSession(DoublingSession):
    """Doubles with half's range: larger values become infinite."""

    def run(self, feeds: Feeds, outputs: Sequence[str] | None = None) -> Feeds:
        with np.errstate(over="ignore"):
            result = super().run(feeds, outputs)
            return {name: values.astype(np.float16).astype(np.float32) for name, values in result.items()}


def open_half() -> HalfSession:
    """Return a half session that does not wait."""
    session = HalfSession()
    session.gate.set()
    return session


def model_of(reference: DoublingSession | None = None, **settings: object) -> Model:
    """Return a half model, with the FP32 reference if one is given."""
    half = open_half()
    signature = Signature(half.inputs, half.outputs, BatchSpec(free=True, max_size=8))
    opener = (lambda: reference) if reference else None
    model = Model("m", "1", ServeSettings(**settings))
    model.start(Loaded((half,), signature, "fp16", opener, finite_outputs=frozenset({"y"})))
    return model


def ask(model: Model, *asked: Feeds, wish: RequestedPrecision = "auto") -> list[Answer]:
    """Return the answers to concurrent requests."""

    async def all_of_them() -> list[Answer]:
        return await asyncio.gather(
            *(model.infer(feeds, ["y"], 5, wish=wish, request_id=str(index)) for index, feeds in enumerate(asked))
        )

    return asyncio.run(all_of_them())


def test_an_overflow_of_half_is_answered_in_fp32():
    """The caller gets the correct answer, with FP32 as its precision."""
    model = model_of(open_fake())
    [answer] = ask(model, LARGE)

    assert ([[120_000] * 3], "fp32") == (answer.outputs["y"].tolist(), answer.precision)
    assert (1, 0) == (model.monitor.guard.reruns, model.monitor.guard.unrepaired)


def test_only_the_overflowing_request_is_rerun():
    """The other requests of the batch keep their half answers and do not reach the reference."""
    reference = open_fake()
    answers = ask(model_of(reference), ROW, LARGE, ROW)

    assert ["fp16", "fp32", "fp16"] == [answer.precision for answer in answers]
    assert [1] == [len(feeds["x"]) for feeds in reference.runs]


def test_a_finite_answer_loads_no_reference():
    """The FP32 model is not loaded as long as nothing overflows."""

    def open_nothing() -> DoublingSession:
        raise AssertionError("not needed")

    model = model_of()
    model.start(replace(model.loaded, open_reference=open_nothing))

    assert "fp16" == ask(model, ROW)[0].precision


def test_non_finite_answers_of_both_precisions_stay_half():
    """A NaN input gives a NaN answer in half, and the guard does not count it."""
    model = model_of(open_fake())
    [answer] = ask(model, {"x": np.array([[1, np.nan, 3]], np.float32)})

    assert "fp16" == answer.precision
    assert (0, 0) == (model.monitor.guard.reruns, model.monitor.guard.unrepaired)


def test_without_a_reference_an_overflow_is_an_error():
    """A bundle without an FP32 model raises NonFiniteError instead of answering with infinity."""
    model = model_of()
    with pytest.raises(NonFiniteError, match=r"fp16 answer holds NaN or infinite values in `y`.*no FP32 reference"):
        ask(model, LARGE)

    assert (0, 1) == (model.monitor.guard.reruns, model.monitor.guard.unrepaired)


def test_without_a_reference_non_finite_inputs_are_no_error():
    """A non-finite input explains a non-finite answer."""
    [answer] = ask(model_of(), {"x": np.array([[1, np.inf, 3]], np.float32)})

    assert [[2, np.inf, 6]] == answer.outputs["y"].tolist()


def test_the_guard_can_be_switched_off():
    """With --no-guard the half answer is returned as it is."""
    [answer] = ask(model_of(open_fake(), guard=False), LARGE)

    assert ("fp16", True) == (answer.precision, bool(np.isinf(answer.outputs["y"]).all()))


def test_a_request_for_half_is_not_guarded():
    """A request for half precision is answered in half, even if it overflows."""
    assert "fp16" == ask(model_of(open_fake()), LARGE, wish="half")[0].precision


def test_a_request_for_fp32_is_answered_in_fp32():
    """A request for FP32 does not run the half model."""
    [answer] = ask(model_of(open_fake()), ROW, wish="fp32")

    assert ("fp32", [[2, 2, 2]]) == (answer.precision, answer.outputs["y"].tolist())


def test_fp32_is_refused_without_a_reference():
    """A request for FP32 is a RequestError if the bundle has no reference."""
    with pytest.raises(RequestError, match="holds no FP32 reference"):
        ask(model_of(), ROW, wish="fp32")


def test_half_is_refused_if_fp32_is_served():
    """A bf16 bundle on a CPU is served in FP32 and cannot answer in half."""
    session = open_fake()
    model = Model("m", "1")
    model.start(Loaded((session,), Signature(session.inputs, session.outputs, BatchSpec(free=True)), "fp32"))

    with pytest.raises(RequestError, match="served in fp32 here"):
        ask(model, ROW, wish="half")


def test_a_reference_that_does_not_load_fails_its_request_alone():
    """The error holds the reason, and the half model continues to answer."""

    def fail() -> DoublingSession:
        raise SourceError("the file is damaged")

    model = model_of()
    model.start(replace(model.loaded, open_reference=fail))
    with pytest.raises(SourceError, match="damaged"):
        ask(model, LARGE)

    assert "fp16" == ask(model, ROW)[0].precision


def test_a_record_holds_a_fingerprint_and_no_inputs():
    """The record of a guarded request identifies its inputs and holds none of their values."""
    model = model_of(open_fake())
    ask(model, LARGE)
    [guarded] = model.monitor.guard.records

    assert (fingerprint(LARGE), ("y",), True) == (guarded.fingerprint, guarded.outputs, guarded.repaired)
    assert fingerprint(ROW) != guarded.fingerprint
    assert 16 == len(guarded.fingerprint)


def test_inputs_are_written_to_the_folder(tmp_path):
    """With --keep-guarded the inputs are stored under their fingerprint."""

    async def scene() -> None:
        await model_of(open_fake(), keep_guarded=str(tmp_path / "kept")).infer(LARGE, ["y"], 5)
        for _ in range(200):
            if list((tmp_path / "kept").glob("*.npz")):
                return
            await asyncio.sleep(0.01)

    asyncio.run(scene())
    with np.load(tmp_path / "kept" / f"{fingerprint(LARGE)}.npz") as kept:
        np.testing.assert_array_equal(LARGE["x"], kept["x"])


def test_a_folder_that_cannot_be_written_is_logged(tmp_path, caplog):
    """A failed write is a warning in the log, not an error."""
    blocked = tmp_path / "file"
    blocked.write_text("")
    save_inputs(blocked, "a", LARGE)

    assert "cannot be written" in caplog.text


def test_text_inputs_are_written_without_pickle(tmp_path):
    """Strings are written as plain arrays, and an input may have any name."""
    write_inputs(tmp_path, "a", {"t": np.array(["ä", "b"], object), "file": np.ones(2)})

    with np.load(tmp_path / "a.npz", allow_pickle=False) as kept:
        assert ["ä", "b"] == kept["t"].tolist()
        assert [1, 1] == kept["file"].tolist()
    assert ["a.npz"] == [path.name for path in tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("half", "fp32", "same"),
    [
        ([1, np.inf], [2, np.inf], True),
        ([np.nan, -np.inf], [np.nan, np.inf], True),
        ([1, np.inf], [1, 2], False),
        ([np.nan, 1], [np.inf, 1], False),
        ([np.nan, 1], [1, np.nan], False),
    ],
)
def test_same_non_finite(half, fp32, same):
    """Half is the cause unless FP32 has NaN and infinities in the same elements."""
    assert same == same_non_finite({"y": np.array(half)}, {"y": np.array(fp32)}, frozenset({"y"}))


def test_over_http(tmp_path: Path):
    """A real half model that overflows is answered correctly in FP32, and the metrics and records show it."""
    path = write_bundle(tmp_path / "scale" / "1", OVERFLOWING, reference=DOUBLE, golden=GOLDEN_X)
    with serving(path.parent.parent) as server, httpx.Client(base_url=server.url, timeout=20) as client:
        plain = client.post("/v2/models/scale/infer", content=message([1, 2, 3], shape=[1, 3]))
        guarded = client.post("/v2/models/scale/infer", content=message([1, 2, 40_000], shape=[1, 3]))
        metrics = client.get("/metrics").text
        accuracy = client.get("/v2/models/scale/accuracy").json()

    assert ("fp16-in-fp32", "fp32") == (plain.headers["demi-precision"], guarded.headers["demi-precision"])
    assert {"precision": "fp32"} == guarded.json()["parameters"]
    assert [2, 4, 80_000] == guarded.json()["outputs"][0]["data"]
    assert 'demi_guard_reruns_total{model="scale",precision="fp16-in-fp32",version="1"} 1.0' in metrics
    assert [["y"]] == [request["outputs"] for request in accuracy["guard"]["requests"]]


def test_over_http_without_a_reference(tmp_path: Path):
    """A bundle without a reference answers 500 with a hint."""
    path = write_bundle(tmp_path / "scale" / "1", OVERFLOWING, golden=GOLDEN_X)
    with serving(path.parent.parent) as server:
        answer = httpx.post(
            server.url + "/v2/models/scale/infer", content=message([1, 2, 40_000], shape=[1, 3]), timeout=20
        )

    assert 500 == answer.status_code
    assert "--no-reference" in answer.json()["error"]
