"""Sampled requests run in the other precision when nothing else does, and what follows from what they show."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

import httpx
import numpy as np
import pytest

from demi.accuracy.budget import Budget, Limits
from demi.accuracy.varying import STEADY, Varying
from demi.bundles.manifest import BatchSpec
from demi.runtime.base import Device
from demi.server.accuracy.shadow import PENDING, Sample, Shadow, compare_answers
from demi.server.accuracy.window import MIN_SAMPLES
from demi.server.models.loading import Loaded
from demi.server.models.model import Model
from demi.server.protocol.answer import Answer
from demi.server.protocol.signature import Signature
from demi.server.scheduling.activity import QUIET_S, Activity, activity_of
from demi.server.setting_values import Shares
from demi.server.settings import ServeSettings
from demi.tensors import Feeds
from tests.server.bundles import GOLDEN_X, SCALE, write_bundle
from tests.server.fakes import RESULT, ROW, DoublingSession, message, open_fake, until
from tests.server.processes import serving

X: Feeds = {"x": np.ones((1, 3), np.float32)}
SIGNATURE = Signature((ROW,), (RESULT,), BatchSpec(free=True, max_size=8))


class WrongSession(DoublingSession):
    """Doubles, with an error that can be changed."""

    relative = 0.0

    def run(self, feeds: Feeds, outputs: Sequence[str] | None = None) -> Feeds:
        return {name: values * np.float32(1 + self.relative) for name, values in super().run(feeds, outputs).items()}


def model_of(
    relative: float, share: float = 1.0, varying: Varying = STEADY, **settings: object
) -> tuple[Model, WrongSession, DoublingSession]:
    """A model of which all requests are sampled, its half session and its reference."""
    half = WrongSession()
    half.relative = relative
    half.gate.set()
    reference = open_fake()
    model = Model("m", "1", ServeSettings(shadow=Shares(share), **settings))
    budget = Budget(Limits(relative_l2=1e-2))
    model.start(Loaded((half,), SIGNATURE, "fp16", lambda: reference, budget, varying=varying))
    return model, half, reference


async def ask(model: Model, times: int) -> list[Answer]:
    """One request after the other, each compared before the next."""
    assert model.shadow is not None
    answers = []
    for index in range(times):
        before = model.shadow.samples
        with model.admitted():
            answers.append(await model.infer(X, ["y"], 5, request_id=f"r{index}"))
        await until(lambda before=before: model.shadow.samples > before)
    return answers


def test_a_sampled_request_is_compared():
    """The error of half against FP32 is measured on a live request, which is named."""
    model, _, reference = model_of(1e-3)
    asyncio.run(ask(model, 1))
    [compared] = model.watch.window.compared

    assert "r0" == compared.request_id
    assert 1e-3 == pytest.approx(compared.outputs[0].relative_l2, rel=1e-3)
    assert 1 == len(reference.runs)


def test_noise_is_no_drift():
    """An output that FP32 itself answers otherwise each time is not compared, and the model stays as it is."""
    model, _, _ = model_of(0.5, varying=Varying(drawn=("y",)), on_drift="degrade")
    asyncio.run(ask(model, MIN_SAMPLES + 1))

    assert all(not compared.outputs for compared in model.watch.window.compared)
    assert "over" != model.watch.window.judge().state
    assert not model.watch.degraded


def test_nothing_is_sampled_by_default():
    """Without --shadow the reference is never run."""
    model, _, reference = model_of(1e-3, share=0.0)

    async def scene():
        with model.admitted():
            await model.infer(X, ["y"], 5)
        await asyncio.sleep(0.02)

    asyncio.run(scene())
    assert [] == reference.runs


def test_a_sample_waits_for_the_last_live_request():
    """While any request waits or runs on the device the reference does not run."""
    model, _, reference = model_of(1e-3)

    async def scene():
        with model.admitted():
            await model.infer(X, ["y"], 5)
            await asyncio.sleep(0.02)
            while_live = len(reference.runs)
        await until(lambda: model.shadow.samples == 1)
        return while_live

    assert 0 == asyncio.run(scene())


def shadow_of(
    infer: Callable[..., object], activity: Activity, draws: Sequence[float] = (), share: float = 1.0
) -> Shadow:
    """A shadow with draws that are known."""
    numbers = iter(draws)
    return Shadow(share, SIGNATURE, Budget(), activity, infer, lambda _: None, lambda: next(numbers, 0.0))


def test_the_share_is_what_is_drawn():
    """A request is sampled when the number drawn is below the share."""
    activity = Activity()

    async def scene():
        async def infer(sample):
            return sample.answer

        shadow = shadow_of(infer, activity, [0.009, 0.011, 0.5, 0.0], share=0.01)
        for _ in range(4):
            shadow.offer("", X, Answer({"y": X["x"]}, "fp16"))
            await asyncio.sleep(0.02)
        return shadow.samples

    assert 2 == asyncio.run(scene())


def test_what_finds_no_idle_moment_is_dropped_and_counted(monkeypatch):
    """A device that is always busy drops samples: those that find no room, and those that wait in vain."""
    monkeypatch.setattr("demi.server.accuracy.shadow.PATIENCE_S", 0.02)
    activity = Activity()

    async def infer(sample):
        raise AssertionError("the device is busy")

    async def scene():
        shadow = shadow_of(infer, activity)
        with activity.live():
            for _ in range(PENDING + 3):
                shadow.offer("", X, Answer({"y": X["x"]}, "fp16"))
            await until(lambda: shadow.dropped["busy"] == PENDING)
        return shadow

    shadow = asyncio.run(scene())
    assert ({"busy": PENDING, "queue": 3, "failed": 0}, 0) == (shadow.dropped, shadow.samples)


def test_a_comparison_that_fails_is_counted_and_the_next_goes_on():
    """Whatever goes wrong in the other precision is no concern of live traffic."""
    failures = iter([RuntimeError("no kernel")])

    async def infer(sample):
        if error := next(failures, None):
            raise error
        return sample.answer

    async def scene():
        shadow = shadow_of(infer, Activity())
        for _ in range(2):
            shadow.offer("", X, Answer({"y": X["x"]}, "fp16"))
        await until(lambda: shadow.samples == 1)
        return shadow.dropped["failed"]

    assert 1 == asyncio.run(scene())


@pytest.mark.parametrize(
    ("fp32", "half", "outputs"),
    [
        ([[np.nan, np.inf]], [[np.nan, np.inf]], []),
        (np.zeros((0, 2)), np.zeros((0, 2)), []),
        ([[np.nan, 1.0]], [[np.nan, 1.0]], ["y"]),
        ([[1.0, 1.0]], [[np.nan, np.inf]], ["y"]),
        ([[1.0, 1.0]], [[1.0]], ["y"]),
    ],
    ids=["nothing-finite", "no-rows", "something", "half-alone", "another-shape"],
)
def test_what_cannot_be_compared_is_no_evidence(fp32, half, outputs):
    """An answer that FP32 does not give either says nothing of half, good or bad; what half alone gets wrong does."""
    sample = Sample("r", X, Answer({}, "fp16"))
    compared = compare_answers(sample, {"y": np.float32(half)}, {"y": np.float32(fp32)}, Budget())

    assert outputs == [diff.output for diff in compared.outputs]


def test_a_window_of_nothing_is_unknown():
    """However many requests of no rows were sampled, nothing is known."""
    model, _, _ = model_of(1e-3)
    nothing = {"y": np.zeros((0, 3), np.float32)}
    for _ in range(2 * MIN_SAMPLES):
        model.watch.add(compare_answers(Sample("r", X, Answer({}, "fp16")), nothing, nothing, Budget()))

    assert model.watch.state_text.startswith("unknown")


def test_a_device_has_one_activity():
    """Models on one device know of each other's requests."""
    assert activity_of(Device("cuda", 7)) is activity_of(Device("cuda", 7))
    assert activity_of(Device("cuda", 7)) is not activity_of(Device("cuda", 8))


def test_over_the_budget_is_told_once(caplog):
    """With --on-drift log the log says what is over, and traffic stays where it is."""
    model, _, _ = model_of(5e-2)
    answers = asyncio.run(ask(model, MIN_SAMPLES + 5))

    assert {"fp16"} == {answer.precision for answer in answers}
    assert 1 == caplog.text.count("over its accuracy budget (`y`: relative_l2 is 0.05")
    assert (True, False) == (model.watch.over, model.watch.degraded)
    assert {"over": 1, "within": 0} == model.watch.changed


def test_degraded():
    """With --on-drift degrade the model is reported so, and goes on in half."""
    model, _, _ = model_of(5e-2, on_drift="degrade")
    answers = asyncio.run(ask(model, MIN_SAMPLES + 1))

    assert (True, "fp16") == (model.watch.degraded, answers[-1].precision)


def test_traffic_moves_to_fp32_and_back():
    """With --on-drift fp32 requests are answered in FP32 while half is wrong, and in half once it is right again."""
    model, half, _ = model_of(5e-2, on_drift="fp32")

    async def scene():
        wrong = await ask(model, MIN_SAMPLES)
        moved = await ask(model, 3)
        half.relative = 1e-4
        model.watch.window.clear()
        await ask(model, MIN_SAMPLES)
        return wrong[0].precision, moved[-1].precision, (await ask(model, 1))[0].precision

    assert ("fp16", "fp32", "fp16") == asyncio.run(scene())
    assert ["over", "within"] == [change.to for change in model.watch.changes]


def test_inputs_beyond_calibration_are_counted():
    """Traffic that grew a hundredfold is noticed before it overflows; a NaN counts, too."""
    half = open_fake()
    model = Model("m", "1")
    model.start(Loaded((half,), SIGNATURE, "fp16", None, input_ranges={"x": (-1.0, 1.0)}))

    async def scene():
        for factor in (1, 1.4, 100, -100, np.nan):
            await model.infer({"x": X["x"] * np.float32(factor)}, ["y"], 5)

    asyncio.run(scene())
    assert {"x": 3} == model.watch.outside


DRIFTED = SCALE.replace("Mul(x, w)", "Sum(x, x, w)")


@pytest.fixture(scope="module")
def shadowed(tmp_path_factory):
    """A server of a half model that answers something else than its reference; every request is sampled."""
    root = tmp_path_factory.mktemp("shadowed")
    write_bundle(root / "scale" / "1", SCALE, reference=DRIFTED, golden=GOLDEN_X)
    write_bundle(root / "bare" / "1", SCALE, name="bare", golden=GOLDEN_X)
    with serving(root, "--shadow", "1", "--allow-model-control", "--on-drift", "fp32") as server:
        yield server


def test_accuracy_over_http(shadowed):
    """The endpoint and the metrics say what sampled requests showed, and clients are moved to FP32."""
    with httpx.Client(base_url=shadowed.url, timeout=20) as client:
        for index in range(400):
            body = message([1, 2, 3], shape=[1, 3], id=f"r{index}")
            served = client.post("/v2/models/scale/infer", content=body).json()["parameters"]["precision"]
            if served == "fp32":
                break
            time.sleep(4 * QUIET_S)  # a client that leaves the device a moment
        accuracy = client.get("/v2/models/scale/accuracy").json()
        metrics = client.get("/metrics").text
        metadata = client.get("/v2/models/scale").json()

    assert "fp32" == served
    assert ("fp32", True, "over") == (accuracy["serving"], accuracy["degraded"], accuracy["changes"][0]["to"])
    assert "`y`: relative_l2 is" in accuracy["changes"][0]["reasons"][0]
    assert 'demi_accuracy_state{model="scale",precision="fp16",state="over",version="1"} 1.0' in metrics
    assert 'demi_shadow_relative_l2_count{model="scale",output="y",precision="fp16",version="1"}' in metrics
    assert "degraded" == metadata["parameters"]["accuracy"]


def test_the_share_can_be_changed_while_it_serves(shadowed):
    """A POST sets the share of one model; nonsense is refused, and so is a model with nothing to compare."""
    with httpx.Client(base_url=shadowed.url, timeout=20) as client:
        changed = client.post("/v2/models/scale/accuracy", json={"shadow": 0.25})
        wrong = [client.post("/v2/models/scale/accuracy", content=body) for body in (b"", b'{"shadow": 2}', b"[]")]
        bare = client.post("/v2/models/bare/accuracy", json={"shadow": 0.25})
        unknown = client.post("/v2/models/nope/accuracy", json={"shadow": 0.25})

    assert (200, 0.25) == (changed.status_code, changed.json()["shadow"]["share"])
    assert [400] * 3 == [answer.status_code for answer in wrong]
    assert (400, 404) == (bare.status_code, unknown.status_code)


def test_the_share_is_the_operators(client):
    """Without --allow-model-control clients may look, and not change anything."""
    answer = client.post("/v2/models/scale/accuracy", json={"shadow": 1})

    assert 403 == answer.status_code
    assert "unknown (0 samples)" == client.get("/v2/models/scale/accuracy").json()["state"]
