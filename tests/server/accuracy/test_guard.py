"""The guard: what half precision alone makes NaN or infinite is answered in FP32, and never silently."""

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
from demi.server.accuracy.guard import Guard, fingerprint, same_non_finite, write_inputs
from demi.server.errors import NonFiniteError, RequestError
from demi.server.models.loading import Loaded
from demi.server.models.model import Model
from demi.server.protocol.answer import Answer, RequestedPrecision
from demi.server.protocol.signature import Signature
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
    """Doubles as half would: what is beyond its range becomes infinite."""

    def run(self, feeds: Feeds, outputs: Sequence[str] | None = None) -> Feeds:
        with np.errstate(over="ignore"):
            result = super().run(feeds, outputs)
            return {name: values.astype(np.float16).astype(np.float32) for name, values in result.items()}


def open_half() -> HalfSession:
    """A half session that does not wait."""
    session = HalfSession()
    session.gate.set()
    return session


def model_of(reference: DoublingSession | None = None, **settings: object) -> Model:
    """A half model, with an FP32 reference where one is given."""
    half = open_half()
    signature = Signature(half.inputs, half.outputs, BatchSpec(free=True, max_size=8))
    opener = (lambda: reference) if reference else None
    model = Model("m", "1", ServeSettings(**settings))
    model.start(Loaded((half,), signature, "fp16", opener, finite_outputs=frozenset({"y"})))
    return model


def ask(model: Model, *asked: Feeds, wish: RequestedPrecision = "auto") -> list[Answer]:
    """The answers to requests that come together."""

    async def all_of_them() -> list[Answer]:
        return await asyncio.gather(
            *(model.infer(feeds, ["y"], 5, wish=wish, request_id=str(index)) for index, feeds in enumerate(asked))
        )

    return asyncio.run(all_of_them())


def test_what_half_alone_makes_infinite_is_answered_in_fp32():
    """The caller gets the right answer, and is told where it comes from."""
    model = model_of(open_fake())
    [answer] = ask(model, LARGE)

    assert ([[120_000] * 3], "fp32") == (answer.outputs["y"].tolist(), answer.precision)
    assert (1, 0) == (model.watch.guard.reruns, model.watch.guard.unrepaired)


def test_only_the_request_that_needs_it_runs_again():
    """Others of its batch keep their half answers, and the reference sees nothing of them."""
    reference = open_fake()
    answers = ask(model_of(reference), ROW, LARGE, ROW)

    assert ["fp16", "fp32", "fp16"] == [answer.precision for answer in answers]
    assert [1] == [len(feeds["x"]) for feeds in reference.runs]


def test_a_finite_answer_costs_no_reference():
    """As long as nothing overflows, the FP32 model is not even loaded."""

    def open_nothing() -> DoublingSession:
        raise AssertionError("nobody needs it")

    model = model_of()
    model._loaded = replace(model.loaded, open_reference=open_nothing)
    model.start(model.loaded)

    assert "fp16" == ask(model, ROW)[0].precision


def test_what_fp32_makes_infinite_too_is_half_as_it_was():
    """NaN that was sent comes back as NaN, and is not counted as half's doing."""
    model = model_of(open_fake())
    [answer] = ask(model, {"x": np.array([[1, np.nan, 3]], np.float32)})

    assert "fp16" == answer.precision
    assert (0, 0) == (model.watch.guard.reruns, model.watch.guard.unrepaired)


def test_without_a_reference_it_is_an_error_that_says_so():
    """A bundle without its FP32 model answers with a typed error instead of a silent infinity."""
    model = model_of()
    with pytest.raises(NonFiniteError, match=r"fp16 answer holds NaN or infinite values in `y`.*no FP32 reference"):
        ask(model, LARGE)

    assert (0, 1) == (model.watch.guard.reruns, model.watch.guard.unrepaired)


def test_without_a_reference_nan_in_is_nan_out():
    """An input that is not finite itself explains an answer that is not."""
    [answer] = ask(model_of(), {"x": np.array([[1, np.inf, 3]], np.float32)})

    assert [[2, np.inf, 6]] == answer.outputs["y"].tolist()


def test_the_guard_can_be_switched_off():
    """With --no-guard half answers as it is."""
    [answer] = ask(model_of(open_fake(), guard=False), LARGE)

    assert ("fp16", True) == (answer.precision, bool(np.isinf(answer.outputs["y"]).all()))


def test_who_asks_for_half_gets_half():
    """The guard keeps out of a request that asks for half."""
    assert "fp16" == ask(model_of(open_fake()), LARGE, wish="half")[0].precision


def test_who_asks_for_fp32_gets_fp32():
    """A request that asks for FP32 never sees the half model."""
    [answer] = ask(model_of(open_fake()), ROW, wish="fp32")

    assert ("fp32", [[2, 2, 2]]) == (answer.precision, answer.outputs["y"].tolist())


def test_fp32_is_refused_where_it_is_not():
    """A bundle without its reference says so to a request for FP32."""
    with pytest.raises(RequestError, match="holds no FP32 reference"):
        ask(model_of(), ROW, wish="fp32")


def test_half_is_refused_where_fp32_is_served():
    """A bf16 bundle on a CPU is served in FP32 and cannot answer in half."""
    session = open_fake()
    model = Model("m", "1")
    model.start(Loaded((session,), Signature(session.inputs, session.outputs, BatchSpec(free=True)), "fp32"))

    with pytest.raises(RequestError, match="served in fp32 here"):
        ask(model, ROW, wish="half")


def test_a_reference_that_does_not_load_fails_its_request_alone():
    """The error says why, and the half model goes on."""

    def fail() -> DoublingSession:
        raise SourceError("the file is damaged")

    model = model_of()
    model.start(replace(model.loaded, open_reference=fail))
    with pytest.raises(SourceError, match="damaged"):
        ask(model, LARGE)

    assert "fp16" == ask(model, ROW)[0].precision


def test_a_fingerprint_is_kept_and_never_the_inputs():
    """What is remembered of a guarded request tells it again, and holds none of its values."""
    model = model_of(open_fake())
    ask(model, LARGE)
    [guarded] = model.watch.guard.guarded

    assert (fingerprint(LARGE), ("y",), True) == (guarded.fingerprint, guarded.outputs, guarded.repaired)
    assert fingerprint(ROW) != guarded.fingerprint
    assert 16 == len(guarded.fingerprint)


def test_inputs_are_kept_in_a_folder_that_was_named(tmp_path):
    """With --keep-guarded the arrays can be looked at later, by their fingerprint."""

    async def scene() -> None:
        await model_of(open_fake(), keep_guarded=str(tmp_path / "kept")).infer(LARGE, ["y"], 5)
        for _ in range(200):
            if list((tmp_path / "kept").glob("*.npz")):
                return
            await asyncio.sleep(0.01)

    asyncio.run(scene())
    with np.load(tmp_path / "kept" / f"{fingerprint(LARGE)}.npz") as kept:
        np.testing.assert_array_equal(LARGE["x"], kept["x"])


def test_a_folder_that_cannot_be_written_harms_nothing(tmp_path, caplog):
    """The log says that the inputs were not kept."""
    blocked = tmp_path / "file"
    blocked.write_text("")
    guard = Guard(blocked)
    guard.keep(guard.note("a", LARGE, frozenset({"y"}), repaired=True), LARGE)

    assert "cannot be kept" in caplog.text


def test_text_inputs_are_kept_without_pickle(tmp_path):
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
def test_who_is_to_blame(half, fp32, same):
    """Half is to blame unless FP32 has NaN and infinities in the same places."""
    assert same == same_non_finite({"y": np.array(half)}, {"y": np.array(fp32)}, frozenset({"y"}))


def test_over_http(tmp_path: Path):
    """A real half model that overflows: a right answer, which says that FP32 gave it, and a counter that rose."""
    path = write_bundle(tmp_path / "scale" / "1", OVERFLOWING, reference=DOUBLE, golden=GOLDEN_X)
    with serving(path.parent.parent) as server, httpx.Client(base_url=server.url, timeout=20) as client:
        plain = client.post("/v2/models/scale/infer", content=message([1, 2, 3], shape=[1, 3]))
        guarded = client.post("/v2/models/scale/infer", content=message([1, 2, 40_000], shape=[1, 3]))
        metrics = client.get("/metrics").text
        accuracy = client.get("/v2/models/scale/accuracy").json()

    assert ("fp16", "fp32") == (plain.headers["demi-precision"], guarded.headers["demi-precision"])
    assert {"precision": "fp32"} == guarded.json()["parameters"]
    assert [2, 4, 80_000] == guarded.json()["outputs"][0]["data"]
    assert 'demi_guard_reruns_total{model="scale",precision="fp16",version="1"} 1.0' in metrics
    assert [["y"]] == [request["outputs"] for request in accuracy["guard"]["requests"]]


def test_over_http_without_a_reference(tmp_path: Path):
    """A bundle without its reference answers 500, with a text that says what to do."""
    path = write_bundle(tmp_path / "scale" / "1", OVERFLOWING, golden=GOLDEN_X)
    with serving(path.parent.parent) as server:
        answer = httpx.post(
            server.url + "/v2/models/scale/infer", content=message([1, 2, 40_000], shape=[1, 3]), timeout=20
        )

    assert 500 == answer.status_code
    assert "--no-reference" in answer.json()["error"]
