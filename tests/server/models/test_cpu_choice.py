"""What serves on a CPU: half where it was proved to pay there, else FP32, and everybody is told which and why."""

from __future__ import annotations

import asyncio
import dataclasses
import signal
import time
from pathlib import Path

import httpx
import numpy as np
import pytest

from demi.bundles.bundle import Bundle, open_bundle
from demi.errors import DeviceError
from demi.proofs.prove import Proving, proof_of
from demi.proofs.record import SCHEMA, Attempt, Place, Proof, Road, Timing, place_of, write_proof
from demi.runtime.openvino.capability import Cpu, read_cpu
from demi.runtime.openvino.session import OvSession, openvino_version
from demi.server.errors import RequestError
from demi.server.http.console.cards import Cards
from demi.server.models.cpu_choice import Choice, choose_on_cpu, proved_before
from demi.server.models.describe import configure_model, describe_model
from demi.server.models.loading import load_bundle
from demi.server.models.model import Model
from demi.server.settings import ServeSettings
from tests.demi.proofs import runtimes
from tests.server import openvino_bundles
from tests.server.bundles import GOLDEN_X, MIXED, SCALE, write_bundle
from tests.server.processes import serving

needs_openvino = pytest.mark.skipif(openvino_version() is None, reason="OpenVINO is not installed")

AUTO = ServeSettings()
TYPED, HINTED = Road("model.onnx", "dynamic"), Road("reference.onnx", "f16")
PLACE = Place("cpu", "2026.4.1", "1.32.0", "0" * 64, 1)
CPU = Cpu("Xeon", 2, frozenset({"amx_fp16"}))


@pytest.fixture
def path(tmp_path) -> Path:
    """A bundle with a reference and golden inputs."""
    return write_bundle(tmp_path / "b", MIXED, name="m", reference=SCALE, golden=GOLDEN_X)


def proves(*attempts: Attempt):
    """What finds these attempts, and nothing else."""
    return lambda bundle, threads, settings: Proof(SCHEMA, PLACE, "Xeon", bundle.manifest.precision, attempts)


def right(speedup: float, road: Road = TYPED) -> Attempt:
    return Attempt(road, "", {"y": 1e-4}, (Timing(1, speedup, 1.0),))


PAYS, SLOW, DIES = right(3.0), right(0.8), Attempt(TYPED, "the process died with SIGILL")
NEVER = pytest.fail


class TestChoice:
    """A model, its precision and its runtime."""

    @pytest.mark.parametrize(
        ("settings", "attempts", "file", "runtime", "precision"),
        [
            ({}, [PAYS], "model.onnx", "openvino", "fp16"),
            ({}, [SLOW, right(2.0, HINTED)], "reference.onnx", "openvino", "fp16"),
            ({}, [SLOW], "reference.onnx", "onnxruntime", "fp32"),
            ({}, [DIES], "reference.onnx", "onnxruntime", "fp32"),
            ({}, [], "reference.onnx", "onnxruntime", "fp32"),
            ({"precision": "half"}, [SLOW], "model.onnx", "openvino", "fp16"),
            ({"precision": "half"}, [DIES], "model.onnx", "onnxruntime", "fp16-in-fp32"),
            ({"runtime": "openvino"}, [SLOW], "model.onnx", "openvino", "fp16"),
        ],
        ids=["pays", "the other road", "slow", "dies", "none", "half, slow", "half, dies", "openvino, slow"],
    )
    def test_by_the_proof(self, path, settings, attempts, file, runtime, precision):
        """Right and faster serves; right alone where somebody insists; wrong never."""
        found = choose_on_cpu(open_bundle(path), dataclasses.replace(AUTO, **settings), proves(*attempts))

        assert (path / file, runtime, precision) == (found.path, found.runtime, found.precision)

    @pytest.mark.parametrize(
        ("precision", "file", "served"), [("auto", "reference.onnx", "fp32"), ("half", "model.onnx", "fp16-in-fp32")]
    )
    def test_onnxruntime_by_hand(self, path, precision, file, served):
        """Nothing is proved then."""
        settings = dataclasses.replace(AUTO, runtime="onnxruntime", precision=precision)

        found = choose_on_cpu(open_bundle(path), settings, NEVER)

        assert (path / file, served) == (found.path, found.precision)

    def test_openvino_by_hand_where_it_is_wrong(self, path):
        """What came out wrong is not served, whoever asks."""
        with pytest.raises(DeviceError, match=r"--runtime openvino: .*died with SIGILL"):
            choose_on_cpu(open_bundle(path), dataclasses.replace(AUTO, runtime="openvino"), proves(DIES))

    def test_without_a_reference(self, tmp_path, caplog):
        """Half is all there is, and the log says that it may be slow."""
        bundle = open_bundle(write_bundle(tmp_path / "b", MIXED, name="m", golden=GOLDEN_X))

        assert "fp16-in-fp32" == choose_on_cpu(bundle, AUTO, proves()).precision
        assert "m: served in fp16 without an FP32 reference" in caplog.text

    def test_bf16_by_hand(self, tmp_path):
        """ONNX Runtime cannot run it on a CPU, so that insisting on it is an error."""
        bundle = open_bundle(write_bundle(tmp_path / "b", MIXED, precision="bf16", reference=SCALE))
        settings = dataclasses.replace(AUTO, runtime="onnxruntime", precision="half")

        with pytest.raises(DeviceError, match="a bf16 model cannot run on the CPU"):
            choose_on_cpu(bundle, settings, NEVER)

    def test_openvino_on_a_gpu(self, path):
        """It runs on a CPU here."""
        settings = dataclasses.replace(
            AUTO, runtime="openvino", devices=(dataclasses.replace(AUTO.device, kind="cuda"),)
        )

        with pytest.raises(DeviceError, match="OpenVINO runs on a CPU"):
            load_bundle(path, settings)

    def test_what_was_proved_before(self, path):
        """A process that is a trial itself tries nothing, and believes what is beside the bundle."""
        settings = dataclasses.replace(AUTO, engine_key=path.parent / "key", threads=1)
        bundle = open_bundle(path)
        before = proved_before(bundle, 1, settings)
        _keep(bundle, settings)

        assert (None, openvino_version() is not None) == (before.best, proved_before(bundle, 1, settings).pays)


def _keep(bundle: Bundle, settings: ServeSettings) -> None:
    """Write a proof that half pays here beside a bundle."""
    from demi.engines.key import make_key

    cpu = read_cpu()
    place = place_of(bundle, cpu, openvino_version() or "none", settings.threads)
    write_proof(bundle, Proof(SCHEMA, place, str(cpu), "fp16", (PAYS,)), make_key(settings.engine_key))


@pytest.mark.parametrize(
    ("opener", "limit_s", "why"),
    [
        (runtimes.WRONG, 60, "beyond the budget"),
        (runtimes.HANGS, 3, "the process hung"),
        (runtimes.DIES, 60, "died with SIGFPE"),
    ],
    ids=["wrong", "hangs", "dies"],
)
def test_a_cpu_on_which_openvino_is_of_no_use(path, opener, limit_s, why, caplog):
    """It is found before a request is answered, FP32 serves, and the log says why."""
    proving = Proving(CPU, "2026.4.1", opener, limit_s, seconds=0.0)

    found = load_bundle(
        path, AUTO, prove=lambda bundle, threads, _: proof_of(bundle, threads, path.parent / "key", proving)
    )

    assert ("fp32", "onnxruntime") == (found.precision, found.runtime)
    assert [[2, 3, 4]] == found.session.run({"x": np.ones((1, 3), np.float32)})["y"].tolist()
    assert why in found.note
    assert why in caplog.text


class TestServing:
    """A bundle in OpenVINO behind the server's queue."""

    @needs_openvino
    def test_requests_are_joined_and_answered(self, path):
        """As with any other runtime: batches, several instances, statistics, an answer's precision."""
        settings = dataclasses.replace(AUTO, instances=2, threads=1)
        model = Model("m", "1", settings)
        model.start(load_bundle(path, settings, prove=proves(right(3.0, openvino_bundles.HERE))))

        async def ask():
            rows = [{"x": np.full((1, 3), value, np.float32)} for value in range(6)]
            return await asyncio.gather(*(model.infer(feeds, ["y"], 10) for feeds in rows))

        answers = asyncio.run(ask())
        model.close()

        assert [[[2.0 * n, 3.0 * n, 4.0 * n]] for n in range(6)] == [each.outputs["y"].tolist() for each in answers]
        assert {"fp16"} == {each.precision for each in answers}
        assert 6 == model.statistics.inference_count
        assert 2 == sum(isinstance(session, OvSession) for session in model.loaded.sessions)

    @needs_openvino
    @pytest.mark.parametrize("road", [openvino_bundles.HERE, openvino_bundles.HERE_HINTED], ids=["typed", "hint"])
    def test_fp32_beside_it(self, path, road):
        """The guard and the shadow have FP32 on ONNX Runtime to compare with."""
        found = load_bundle(path, AUTO, prove=proves(right(3.0, road)))

        assert found.open_reference is not None
        x = {"x": np.ones((1, 3), np.float32)}
        assert found.session.run(x)["y"].tolist() == found.open_reference().run(x)["y"].tolist()

    @needs_openvino
    def test_an_id_beyond_a_table(self, tmp_path):
        """It is the client's error, as with ONNX Runtime, and names the input."""
        text = """looked_up (int64[batch, 2] ids) => (float[batch, 2, 2] y) <float[3, 2] table = {1, 2, 3, 4, 5, 6}>
        { [y] y = Gather(table, ids) }"""
        golden = {"ids": np.array([[0, 1]])}
        path = write_bundle(tmp_path / "t", text, reference=text, golden=golden)
        model = Model("m", "1", AUTO)
        model.start(load_bundle(path, AUTO, prove=proves(right(3.0, openvino_bundles.HERE))))

        with pytest.raises(RequestError, match="input `ids` holds 7: index 7 is out of range in `y`"):
            asyncio.run(model.infer({"ids": np.array([[0, 7]])}, ["y"], 10))
        model.close()

    @needs_openvino
    def test_shapes_are_warm(self, path):
        """Batches of each size have run before the first request comes."""
        session = load_bundle(path, AUTO, prove=proves(right(3.0, openvino_bundles.HERE))).session

        assert isinstance(session, OvSession)
        assert {(1, 3), (2, 3), (4, 3), (8, 3)} <= {shapes[0] for shapes in session.known_shapes}

    @pytest.mark.parametrize("attempts", [[SLOW], [DIES]], ids=["slow", "dies"])
    def test_everybody_is_told(self, path, attempts, caplog):
        """Log, metadata, configuration and card say what serves, and why it is not half."""
        model = Model("m", "1", AUTO, path)
        model.start(load_bundle(path, AUTO, prove=proves(*attempts)))
        metadata = describe_model(model, ["1"], AUTO).parameters
        card = Cards().card(model, None).note
        model.close()

        assert ("fp32", "onnxruntime") == (metadata["precision"], metadata["runtime"])
        assert "onnxruntime" == configure_model(model).backend
        why = "does not pay" if attempts == [SLOW] else "died with SIGILL"
        for told in (metadata["note"], card, caplog.text):
            assert "the FP32 reference serves" in told
            assert why in told


@needs_openvino
def test_over_http(path):
    """`demi serve --runtime openvino`: proved at the start, answered in half, compared with FP32, stopped by SIGTERM."""
    flags = ("--runtime", "openvino", "--precision", "auto", "--shadow", "1", "--engine-key", str(path.parent / "key"))
    if not read_cpu().has_units("fp16"):
        pytest.skip("this CPU has no units for FP16")
    with serving(path, *flags) as server, httpx.Client(base_url=server.url, timeout=20) as client:
        body = {"inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 1, 1]}]}
        answers = [client.post("/v2/models/m/infer", json=body).json() for _ in range(3)]
        metadata = client.get("/v2/models/m").json()["parameters"]
        stop = time.monotonic() + 10
        while not client.get("/v2/models/m/accuracy").json()["samples"] and time.monotonic() < stop:
            time.sleep(0.05)
        samples = client.get("/v2/models/m/accuracy").json()["samples"]
        code = server.stop(signal.SIGTERM)

    assert [[2.0, 3.0, 4.0]] * 3 == [answer["outputs"][0]["data"] for answer in answers]
    assert ("openvino", "fp16") == (metadata["runtime"], metadata["precision"])
    assert samples > 0
    assert 0 == code


def test_a_choice_names_its_runtime(tmp_path):
    """A road is OpenVINO's."""
    assert ["onnxruntime", "openvino"] == [Choice(tmp_path, "fp16", road).runtime for road in (None, TYPED)]
