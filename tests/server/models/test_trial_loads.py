"""Trial loads: a model that crashes its process is reported, and the server serves the others."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import sys
import threading

import httpx
import numpy as np
import pytest

from demi.bundles.manifest import MODEL
from demi.errors import CrashError, DigestError
from demi.runtime.base import Device
from demi.server.models.loading import load_bundle
from demi.server.models.reference import Reference
from demi.server.models.repository import open_repository
from demi.server.models.trial_loads import TrialLoads, load_after_trial
from demi.server.settings import ServeSettings
from tests.server.bundles import GOLDEN_X, MIXED, SCALE, damage, write_bundle
from tests.server.fakes import open_fake
from tests.server.processes import run_serve, serving

MORTAL = f"""mortal (float16[batch, n, 64] x) => (float[n, batch, 8] y)
<float[64, 8] w = {{{", ".join(["0.5"] * 512)}}}>
{{ t = Transpose<perm = [1, 0, 2]>(x)
  single = Cast<to = 1>(t)
  y = MatMul(single, w) }}"""
"""A model that crashes ONNX Runtime 1.24 to 1.32 unless Demi disables the optimization that does."""

UNDEFENDED = "import demi.runtime.onnxruntime.session as ort\nort.disabled_optimizers = lambda *_: set()\n"
HANGING = """
import pathlib, time
import demi.runtime.onnxruntime.session as ort
create = ort._create
def hang(library, model, device, settings):
    if "mortal" in str(model):
        time.sleep(100)
    return create(library, model, device, settings)
ort._create = hang
"""
SETTINGS = ServeSettings(runtime="onnxruntime", precision="half")
X = {"inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 1, 1]}]}


@pytest.fixture
def customized(tmp_path, monkeypatch):
    """Return a function that makes every interpreter of this test run code at startup."""

    def customize(code: str) -> None:
        (tmp_path / "site").mkdir()
        (tmp_path / "site" / "sitecustomize.py").write_text(code, encoding="utf-8")
        paths = [str(tmp_path / "site"), *(path or os.getcwd() for path in sys.path)]
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))

    return customize


@pytest.fixture
def models(tmp_path):
    """Folder with a sound model, and one that can crash."""
    write_bundle(tmp_path / "models" / "mixed" / "1", MIXED, golden=GOLDEN_X)
    write_bundle(tmp_path / "models" / "mortal" / "1", MORTAL)
    return tmp_path / "models"


def test_the_model_loads_without_the_optimization(models):
    """Opened with Demi's settings, the model serves like any other."""
    with serving(models, "--no-grpc") as server:
        assert server.said("models=mixed/1,mortal/1 failed=none")


def test_the_others_are_served(models, customized):
    """A real crash while loading is reported in the log and to clients, and the server runs."""
    customized(UNDEFENDED)
    with serving(models, "--no-grpc", "--allow-model-control") as server:
        if server.said("failed=none"):
            pytest.skip("this ONNX Runtime opens the model")
        answer = httpx.post(server.url + "/v2/models/mixed/infer", json=X)
        state = httpx.get(server.url + "/v2/models/mortal/ready")
        again = httpx.post(server.url + "/v2/repository/models/mortal/load", json={})
        after = httpx.get(server.url + "/v2/health/live")

        assert [2, 3, 4] == answer.json()["outputs"][0]["data"]
        assert "died with SIGSEGV (signal 11) while opening `model.onnx` in ONNX Runtime" in server.log
        assert "failed=mortal/1" in server.log
        for refusal in (state, again):
            assert 503 == refusal.status_code
            assert "SIGSEGV" in refusal.json()["error"]
            assert str(models) not in refusal.json()["error"]
        assert 200 == after.status_code


def test_a_model_that_comes_later(models, customized):
    """Models that are loaded while the server runs are tried first, too."""
    customized(UNDEFENDED)
    (models / "mortal").rename(models.parent / "mortal")
    with serving(models, "--no-grpc", "--watch", "0.1") as server:
        (models.parent / "mortal").rename(models / "mortal")
        assert server.said("name=mortal")
        if server.said("model loaded: name=mortal"):
            pytest.skip("this ONNX Runtime opens the model")

        assert server.said("died with SIGSEGV")
        assert 200 == httpx.post(server.url + "/v2/models/mixed/infer", json=X).status_code


def test_a_model_that_hangs(models, customized):
    """A model that hangs is abandoned after the load timeout, and the others are served."""
    customized(HANGING)
    with serving(models, "--no-grpc", "--load-timeout", "3") as server:
        assert "the process hung while running a trial: not finished after 3 s" in server.log
        assert "models=mixed/1 failed=mortal/1" in server.log


def test_the_only_model_crashes(models, customized):
    """If it is the only one, the server exits with the exit code of a crash."""
    customized(HANGING)
    ended = run_serve(str(models / "mortal"), "--port", "0", "--no-grpc", "--load-timeout", "2")

    assert 4 == ended.returncode
    assert "error: the process hung" in ended.stderr


class TestLoading:
    """Place of the trial load among the steps of loading."""

    def test_a_damaged_bundle_is_not_tried(self, tmp_path):
        """A wrong digest is reported before any trial load."""
        path = write_bundle(tmp_path / "b", SCALE)
        damage(path / MODEL)
        tried = []

        with pytest.raises(DigestError):
            load_bundle(path, SETTINGS, trial=lambda *trial: tried.append(trial))
        assert [] == tried

    def test_a_model_that_crashed_is_not_opened(self, tmp_path):
        """The error of the trial load is the model's error."""
        opened = []

        def dies(*_):
            raise CrashError("it died")

        with pytest.raises(CrashError):
            load_bundle(write_bundle(tmp_path / "b", SCALE), SETTINGS, lambda *args: opened.append(args), trial=dies)
        assert [] == opened

    def test_the_reference_is_tried_when_it_is_needed(self, tmp_path):
        """The reference is not tried at startup: most servers never need it."""
        tried = []
        path = write_bundle(tmp_path / "b", MIXED, golden=GOLDEN_X, reference=SCALE)
        found = load_bundle(path, SETTINGS, trial=lambda path, settings, part: tried.append(part))
        assert ["model"] == tried

        assert found.open_reference is not None
        found.open_reference()
        assert ["model", "reference"] == tried

    def test_a_trial_load_that_succeeds(self, tmp_path):
        """After a trial load in a real process the model is loaded, with its reference."""
        found = load_after_trial(write_bundle(tmp_path / "b", MIXED, golden=GOLDEN_X, reference=SCALE), SETTINGS)

        assert found.open_reference is not None
        for session in (found.session, found.open_reference()):
            assert [[2, 3, 4]] == session.run({"x": np.ones((1, 3), np.float32)})["y"].tolist()

    def test_ordinary_errors_are_raised_by_the_load(self, tmp_path):
        """An ordinary error of the trial load is raised again by the real load."""
        settings = dataclasses.replace(SETTINGS, devices=(Device("cuda", 99),))
        path = write_bundle(tmp_path / "b", SCALE)

        with pytest.raises(Exception, match="cuda:99"):
            load_after_trial(path, settings)

    def test_no_trial(self, tmp_path, monkeypatch):
        """`--no-trial` starts no process."""
        monkeypatch.setattr("subprocess.Popen", None)
        settings = dataclasses.replace(SETTINGS, trial=False)
        path = write_bundle(tmp_path / "b", SCALE)
        with TrialLoads(settings) as trials:
            trials.begin(path)

            assert "scale" == next(iter(open_repository(path, settings, trials.load))).name


def test_a_reference_that_crashed_is_not_tried_again():
    """Further requests for it fail at once with the same error."""
    opened = []

    def dies():
        opened.append(threading.current_thread())
        raise CrashError("it died")

    async def scene() -> None:
        reference = Reference("m", dies, lambda session: open_fake())  # type: ignore[arg-type]
        for _ in range(3):
            with pytest.raises(CrashError):
                await reference.backend()

    asyncio.run(scene())
    assert 1 == len(opened)
