"""Models that end their process: the server serves the others, and says of this one why it does not."""

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
from demi.server.models.trial import Trials, load_tried
from demi.server.settings import ServeSettings
from tests.server.bundles import GOLDEN_X, MIXED, SCALE, damage, write_bundle
from tests.server.fakes import open_fake
from tests.server.processes import run_serve, serving

MORTAL = f"""mortal (float16[batch, n, 64] x) => (float[n, batch, 8] y)
<float[64, 8] w = {{{", ".join(["0.5"] * 512)}}}>
{{ t = Transpose<perm = [1, 0, 2]>(x)
  single = Cast<to = 1>(t)
  y = MatMul(single, w) }}"""
"""What ONNX Runtime dies of, at 1.24 to 1.32, when Demi lets it."""

UNDEFENDED = "import demi.runtime.onnxruntime.session as ort\nort.left_out = lambda *_: set()\n"
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
    """Runs code at the start of every interpreter that this test starts."""

    def customize(code: str) -> None:
        (tmp_path / "site").mkdir()
        (tmp_path / "site" / "sitecustomize.py").write_text(code, encoding="utf-8")
        paths = [str(tmp_path / "site"), *(path or os.getcwd() for path in sys.path)]
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))

    return customize


@pytest.fixture
def models(tmp_path):
    """A folder with a model that lives, and one that may not."""
    write_bundle(tmp_path / "models" / "mixed" / "1", MIXED, golden=GOLDEN_X)
    write_bundle(tmp_path / "models" / "mortal" / "1", MORTAL)
    return tmp_path / "models"


def test_with_what_is_left_out_it_lives(models):
    """As Demi opens it, the model is one like any other."""
    with serving(models, "--no-grpc") as server:
        assert server.said("models=mixed/1,mortal/1 failed=none")


def test_the_others_are_served(models, customized):
    """The real death of a real model, while loading: named in the log and to clients, and the server is there."""
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
    """Whatever is loaded while the server runs goes the same way."""
    customized(UNDEFENDED)
    (models / "mortal").rename(models.parent / "mortal")
    with serving(models, "--no-grpc", "--watch", "0.1") as server:
        (models.parent / "mortal").rename(models / "mortal")
        assert server.said("name=mortal")
        if server.said("model loaded: name=mortal"):
            pytest.skip("this ONNX Runtime opens the model")

        assert server.said("died with SIGSEGV")
        assert 200 == httpx.post(server.url + "/v2/models/mixed/infer", json=X).status_code


def test_a_model_that_never_comes(models, customized):
    """A model that hangs is given up after its time; the others are served."""
    customized(HANGING)
    with serving(models, "--no-grpc", "--load-timeout", "3") as server:
        assert "the process hung while trying it out: no end after 3 s" in server.log
        assert "models=mixed/1 failed=mortal/1" in server.log


def test_nothing_but_that_model(models, customized):
    """Where it is the only one, the server ends with the exit code of a death."""
    customized(HANGING)
    ended = run_serve(str(models / "mortal"), "--port", "0", "--no-grpc", "--load-timeout", "2")

    assert 4 == ended.returncode
    assert "error: the process hung" in ended.stderr


class TestLoading:
    """Where the trial stands among the steps of loading."""

    def test_a_damaged_bundle_is_not_tried(self, tmp_path):
        """Its digest says more than its death would."""
        path = write_bundle(tmp_path / "b", SCALE)
        damage(path / MODEL)
        tried = []

        with pytest.raises(DigestError):
            load_bundle(path, SETTINGS, trial=lambda *trial: tried.append(trial))
        assert [] == tried

    def test_what_dies_there_is_not_opened_here(self, tmp_path):
        """The error of the trial is the error of the model."""
        opened = []

        def dies(*_):
            raise CrashError("it died")

        with pytest.raises(CrashError):
            load_bundle(write_bundle(tmp_path / "b", SCALE), SETTINGS, lambda *args: opened.append(args), trial=dies)
        assert [] == opened

    def test_the_reference_is_tried_when_it_is_needed(self, tmp_path):
        """Not at the start, which would take longer for what most servers never need."""
        tried = []
        path = write_bundle(tmp_path / "b", MIXED, golden=GOLDEN_X, reference=SCALE)
        found = load_bundle(path, SETTINGS, trial=lambda path, settings, part: tried.append(part))
        assert ["model"] == tried

        assert found.open_reference is not None
        found.open_reference()
        assert ["model", "reference"] == tried

    def test_a_trial_that_goes_well(self, tmp_path):
        """In a process of its own, for real: then it is loaded here, with its reference."""
        found = load_tried(write_bundle(tmp_path / "b", MIXED, golden=GOLDEN_X, reference=SCALE), SETTINGS)

        assert found.open_reference is not None
        for session in (found.session, found.open_reference()):
            assert [[2, 3, 4]] == session.run({"x": np.ones((1, 3), np.float32)})["y"].tolist()

    def test_ordinary_errors_come_from_here(self, tmp_path):
        """What cannot be loaded there cannot be loaded here, and that is the error."""
        settings = dataclasses.replace(SETTINGS, devices=(Device("cuda", 99),))
        path = write_bundle(tmp_path / "b", SCALE)

        with pytest.raises(Exception, match="cuda:99"):
            load_tried(path, settings)

    def test_no_trial(self, tmp_path, monkeypatch):
        """`--no-trial` starts no process."""
        monkeypatch.setattr("subprocess.Popen", None)
        settings = dataclasses.replace(SETTINGS, trial=False)
        path = write_bundle(tmp_path / "b", SCALE)
        with Trials(settings) as trials:
            trials.begin(path)

            assert "scale" == next(iter(open_repository(path, settings, trials.load))).name


def test_a_reference_that_died_is_not_tried_again():
    """Every request that asks for it would wait for the same death."""
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
