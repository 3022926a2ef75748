"""Shadow runs on an idle device, and the accuracy monitor's reactions to their results."""

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
from demi.server.accuracy.shadow import MAX_PENDING, SampledRequest, Shadow, compare_answers
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
    """Doubles its input with an adjustable relative error."""

    relative = 0.0

    def run(self, feeds: Feeds, outputs: Sequence[str] | None = None) -> Feeds:
        return {name: values * np.float32(1 + self.relative) for name, values in super().run(feeds, outputs).items()}


def model_of(
    relative: float, share: float = 1.0, varying: Varying = STEADY, **settings: object
) -> tuple[Model, WrongSession, DoublingSession]:
    """Return a model whose requests are all sampled, its half session and its reference."""
    half = WrongSession()
    half.relative = relative
    half.gate.set()
    reference = open_fake()
    model = Model("m", "1", ServeSettings(shadow=Shares(share), **settings))
    budget = Budget(Limits(relative_l2=1e-2))
    model.start(Loaded((half,), SIGNATURE, "fp16", lambda: reference, budget, varying=varying))
    return model, half, reference


async def ask(model: Model, times: int) -> list[Answer]:
    """Send requests one after the other, each after the comparison of the last, and return the answers."""
    assert model.shadow is not None
    answers = []
    for index in range(times):
        before = model.shadow.samples
        with model.admitted():
            answers.append(await model.infer(X, ["y"], 5, request_id=f"r{index}"))
        await until(lambda before=before: model.shadow.samples > before)
    return answers


def test_a_sampled_request_is_compared():
    """The error of half against FP32 is measured on a live request and carries its id."""
    model, _, reference = model_of(1e-3)
    asyncio.run(ask(model, 1))
    [compared] = model.monitor.window.samples

    assert "r0" == compared.request_id
    assert 1e-3 == pytest.approx(compared.outputs[0].relative_l2, rel=1e-3)
    assert 1 == len(reference.runs)


def test_random_outputs_are_not_drift():
    """An output that differs from run to run even in FP32 is not compared, and the model's state does not change."""
    model, _, _ = model_of(0.5, varying=Varying(drawn=("y",)), on_drift="degrade")
    asyncio.run(ask(model, MIN_SAMPLES + 1))

    assert all(not compared.outputs for compared in model.monitor.window.samples)
    assert "over" != model.monitor.window.assess().state
    assert not model.monitor.degraded


def test_nothing_is_sampled_by_default():
    """Without --shadow the reference does not run."""
    model, _, reference = model_of(1e-3, share=0.0)

    async def scene():
        with model.admitted():
            await model.infer(X, ["y"], 5)
        await asyncio.sleep(0.02)

    asyncio.run(scene())
    assert [] == reference.runs


def test_a_sample_waits_for_the_last_live_request():
    """The reference does not run while a request waits or runs on the device."""
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
    """Return a shadow with given draws."""
    numbers = iter(draws)
    return Shadow(share, SIGNATURE, Budget(), activity, infer, lambda _: None, lambda: next(numbers, 0.0))


def test_the_share_decides_what_is_sampled():
    """A request is sampled when the number drawn is below the share."""
    activity = Activity()

    async def scene():
        async def infer(sample):
            return sample.answer

        shadow = shadow_of(infer, activity, [0.009, 0.011, 0.5, 0.0], share=0.01)
        for _ in range(4):
            shadow.offer("", X, Answer({"y": X["x"]}, "fp16"))
        async with asyncio.timeout(10):
            while shadow.samples < 2:
                await asyncio.sleep(0.005)
        await asyncio.sleep(0.02)
        return shadow.samples

    assert 2 == asyncio.run(scene())


def test_samples_of_a_busy_device_are_dropped_and_counted(monkeypatch):
    """On a device that is never idle, samples are dropped as the queue is full or their wait has timed out."""
    monkeypatch.setattr("demi.server.accuracy.shadow.IDLE_TIMEOUT_S", 0.02)
    activity = Activity()

    async def infer(sample):
        raise AssertionError("the device is busy")

    async def scene():
        shadow = shadow_of(infer, activity)
        with activity.live():
            for _ in range(MAX_PENDING + 3):
                shadow.offer("", X, Answer({"y": X["x"]}, "fp16"))
            await until(lambda: shadow.dropped["busy"] == MAX_PENDING)
        return shadow

    shadow = asyncio.run(scene())
    assert ({"busy": MAX_PENDING, "queue": 3, "failed": 0}, 0) == (shadow.dropped, shadow.samples)


def test_a_failed_comparison_is_counted():
    """An error in the other precision is counted, and the next sample is compared."""
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
def test_outputs_without_comparable_elements_are_left_out(fp32, half, outputs):
    """Outputs that are non-finite in FP32 too, or empty, are left out; outputs that only half gets wrong are not."""
    sample = SampledRequest("r", X, Answer({}, "fp16"))
    compared = compare_answers(sample, {"y": np.float32(half)}, {"y": np.float32(fp32)}, Budget())

    assert outputs == [diff.output for diff in compared.outputs]


def test_a_window_of_nothing_is_unknown():
    """Requests of no rows leave the state unknown, however many are sampled."""
    model, _, _ = model_of(1e-3)
    nothing = {"y": np.zeros((0, 3), np.float32)}
    for _ in range(2 * MIN_SAMPLES):
        model.monitor.add_sample(
            compare_answers(SampledRequest("r", X, Answer({}, "fp16")), nothing, nothing, Budget())
        )

    assert model.monitor.state_text.startswith("unknown")


def test_a_device_has_one_activity():
    """Models on the same device share one activity."""
    assert activity_of(Device("cuda", 7)) is activity_of(Device("cuda", 7))
    assert activity_of(Device("cuda", 7)) is not activity_of(Device("cuda", 8))


def test_going_over_the_budget_is_logged_once(caplog):
    """With --on-drift log the log names the metric, and traffic stays in half."""
    model, _, _ = model_of(5e-2)
    answers = asyncio.run(ask(model, MIN_SAMPLES + 5))

    assert {"fp16"} == {answer.precision for answer in answers}
    assert 1 == caplog.text.count("over its accuracy budget (`y`: relative_l2 is 0.05")
    assert (True, False) == (model.monitor.over, model.monitor.degraded)
    assert {"over": 1, "within": 0} == model.monitor.changed


def test_on_drift_degrade():
    """With --on-drift degrade the model is reported as degraded and answers in half."""
    model, _, _ = model_of(5e-2, on_drift="degrade")
    answers = asyncio.run(ask(model, MIN_SAMPLES + 1))

    assert (True, "fp16") == (model.monitor.degraded, answers[-1].precision)


def test_traffic_moves_to_fp32_and_back():
    """With --on-drift fp32 requests are answered in FP32 while half is over the budget, and in half afterwards."""
    model, half, _ = model_of(5e-2, on_drift="fp32")

    async def scene():
        wrong = await ask(model, MIN_SAMPLES)
        moved = await ask(model, 3)
        half.relative = 1e-4
        model.monitor.window.clear()
        await ask(model, MIN_SAMPLES)
        return wrong[0].precision, moved[-1].precision, (await ask(model, 1))[0].precision

    assert ("fp16", "fp32", "fp16") == asyncio.run(scene())
    assert ["over", "within"] == [change.to for change in model.monitor.changes]


def test_inputs_outside_the_calibrated_range_are_counted():
    """Inputs a hundred times the calibrated range are counted, and so is NaN."""
    half = open_fake()
    model = Model("m", "1")
    model.start(Loaded((half,), SIGNATURE, "fp16", None, input_ranges={"x": (-1.0, 1.0)}))

    async def scene():
        for factor in (1, 1.4, 100, -100, np.nan):
            await model.infer({"x": X["x"] * np.float32(factor)}, ["y"], 5)

    asyncio.run(scene())
    assert {"x": 3} == model.monitor.outside


def test_inputs_outside_their_range_are_logged(caplog):
    """The first such request and the tenth are logged, with input, range and count; those between are not."""
    model = Model("m", "1")
    model.start(Loaded((open_fake(),), SIGNATURE, "fp16", None, input_ranges={"x": (-1.0, 1.0)}))

    async def scene():
        for factor in (1, *[100] * 11):
            await model.infer({"x": X["x"] * np.float32(factor)}, ["y"], 5)

    asyncio.run(scene())
    first, tenth = [message for message in caplog.messages if "calibrated range" in message]

    assert "input x was outside its calibrated range, -1 to 1, in 1 of 2 requests" in first
    assert "in 10 of 11 requests" in tenth


def test_shadow_runs_are_not_in_the_statistics():
    """Rows and runs count once for each request, so that their ratio is the mean batch with the shadow on as well."""
    model, _, reference = model_of(1e-3)
    asyncio.run(ask(model, 3))

    assert 3 == len(reference.runs)
    assert (3, 3) == (model.statistics.inference_count, model.statistics.execution_count)
    assert 3 == model.statistics.batch_rows.total


DRIFTED = SCALE.replace("Mul(x, w)", "Sum(x, x, w)")


@pytest.fixture(scope="module")
def shadowed(tmp_path_factory):
    """Server of a half model whose answers differ from its reference's; every request is sampled."""
    root = tmp_path_factory.mktemp("shadowed")
    write_bundle(root / "scale" / "1", SCALE, reference=DRIFTED, golden=GOLDEN_X)
    write_bundle(root / "bare" / "1", SCALE, name="bare", golden=GOLDEN_X)
    with serving(root, "--shadow", "1", "--allow-model-control", "--on-drift", "fp32") as server:
        yield server


def test_accuracy_over_http(shadowed):
    """Endpoint and metrics report the model over its budget, and requests are answered in FP32."""
    with httpx.Client(base_url=shadowed.url, timeout=20) as client:
        for index in range(400):
            body = message([1, 2, 3], shape=[1, 3], id=f"r{index}")
            served = client.post("/v2/models/scale/infer", content=body).json()["parameters"]["precision"]
            if served == "fp32":
                break
            time.sleep(4 * QUIET_S)  # a pause in which the device is idle
        accuracy = client.get("/v2/models/scale/accuracy").json()
        metrics = client.get("/metrics").text
        metadata = client.get("/v2/models/scale").json()

    assert "fp32" == served
    assert ("fp32", True, "over") == (accuracy["serving"], accuracy["degraded"], accuracy["changes"][0]["to"])
    assert "`y`: relative_l2 is" in accuracy["changes"][0]["reasons"][0]
    assert 'demi_accuracy_state{model="scale",precision="fp16-in-fp32",state="over",version="1"} 1.0' in metrics
    assert 'demi_shadow_relative_l2_count{model="scale",output="y",precision="fp16-in-fp32",version="1"}' in metrics
    assert "degraded" == metadata["parameters"]["accuracy"]


def test_the_share_can_be_changed_while_it_serves(shadowed):
    """POST sets one model's share; invalid bodies are refused, and so are models without a reference."""
    with httpx.Client(base_url=shadowed.url, timeout=20) as client:
        changed = client.post("/v2/models/scale/accuracy", json={"shadow": 0.25})
        wrong = [client.post("/v2/models/scale/accuracy", content=body) for body in (b"", b'{"shadow": 2}', b"[]")]
        bare = client.post("/v2/models/bare/accuracy", json={"shadow": 0.25})
        unknown = client.post("/v2/models/nope/accuracy", json={"shadow": 0.25})

    assert (200, 0.25) == (changed.status_code, changed.json()["shadow"]["share"])
    assert [400] * 3 == [answer.status_code for answer in wrong]
    assert (400, 404) == (bare.status_code, unknown.status_code)


def test_the_share_cannot_be_changed_without_permission(client):
    """Without --allow-model-control clients can read the accuracy and not change the share."""
    answer = client.post("/v2/models/scale/accuracy", json={"shadow": 1})

    assert 403 == answer.status_code
    assert "unknown (0 samples)" == client.get("/v2/models/scale/accuracy").json()["state"]
