"""The trial process: its crashes become errors here that name the cause."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from demi.errors import CrashError
from demi.processes.trial_process import TrialProcess
from demi.runtime.onnxruntime.first_open import open_tried
from tests.demi.runtime.onnxruntime.test_disabled_optimizers import CASES
from tests.models import MLP, parse, text

WORK = "tests.demi.deaths:run"


@pytest.fixture
def trial():
    """Return a trial process for `tests.demi.deaths`, with one second for each call."""
    with TrialProcess(WORK, 20.0) as started:
        yield started


@pytest.mark.parametrize(
    ("death", "words"),
    [
        ("SIGSEGV", "died with SIGSEGV"),
        ("SIGABRT", "died with SIGABRT"),
        ("SIGFPE", "died with SIGFPE"),
        ("SIGILL", "died with SIGILL"),
        ("SIGKILL", "died with SIGKILL"),
        ("exit", "was ended by a library, with code 3"),
    ],
)
def test_crashes_are_named(trial, death, words):
    """The error names the signal and the step; the next call starts a new process."""
    with pytest.raises(CrashError) as caught:
        trial.call(death)

    assert words in caught.value.message
    assert "while trying this" in caught.value.message
    trial.call("nothing")


def test_stderr_is_logged(trial, caplog):
    """The process's stderr is logged, and is not part of errors that clients see, because it may contain paths."""
    with pytest.raises(CrashError) as caught:
        trial.call("words")

    assert "died with SIGABRT" in caught.value.message
    assert "MKL" not in str(caught.value)
    assert "Intel MKL FATAL ERROR: no such instruction" in caplog.text


def test_where_nothing_can_be_written(trial, monkeypatch):
    """A read-only file system does not prevent trials."""
    monkeypatch.setattr("tempfile.tempdir", "/none")
    with pytest.raises(CrashError, match="SIGABRT"):
        trial.call("words")


def test_a_hang_is_a_crash():
    """A call that takes too long is stopped and reported as a crash."""
    with TrialProcess(WORK, 1.0, "--load-timeout") as trial, pytest.raises(CrashError) as caught:
        trial.call("hang")

    assert "the process hung while trying this: not finished after 1 s" == caught.value.message
    assert "--load-timeout" in str(caught.value.hint)


def test_errors_in_the_trial_are_ignored(trial):
    """An ordinary error in the trial is ignored, because it will be raised here as well."""
    trial.call("raise")
    trial.call("nothing")


def test_ctrl_c(trial, monkeypatch, tmp_path):
    """After Ctrl-C the end of an interrupted call is not taken for the end of the next."""

    def interrupt(process):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(trial, "_wait", interrupt)
        with pytest.raises(KeyboardInterrupt):
            trial.call("nothing")
    trial.call("write", str(tmp_path / "a"))

    assert (tmp_path / "a").read_text()


def test_one_process_for_many_calls(trial, tmp_path):
    """One process serves many calls, because starting one takes longer than most calls."""
    for name in ("a", "b"):
        trial.call("write", str(tmp_path / name))

    assert (tmp_path / "a").read_text() == (tmp_path / "b").read_text() != str(os.getpid())


def test_closing_ends_a_call():
    """Closing stops a call in progress."""
    trial = TrialProcess(WORK)
    trial.start()
    ended: list[CrashError] = []

    def go() -> None:
        try:
            trial.call("hang")
        except CrashError as error:
            ended.append(error)

    thread = threading.Thread(target=go)
    thread.start()
    time.sleep(0.2)
    trial.close()
    thread.join(20)

    assert not thread.is_alive()
    trial.call("SIGSEGV")  # does not start a process


def test_a_machine_without_processes(monkeypatch, caplog):
    """On a machine that cannot start processes, nothing is tried, and a warning is logged."""
    monkeypatch.setattr(sys, "executable", "/none")
    with TrialProcess(WORK) as trial:
        trial.call("SIGSEGV")

    assert "the trial process cannot be started" in caplog.text


def test_an_embedded_interpreter(monkeypatch, caplog):
    """An embedded interpreter cannot be started again, so that nothing is tried."""
    monkeypatch.setattr(sys, "executable", None)
    with TrialProcess(WORK) as trial:
        trial.start()
        trial.call("SIGSEGV")

    assert "the path of the Python interpreter is unknown" in caplog.text


def test_many_open_files(trial):
    """With many open files, the pipe's number may exceed the limit of `select`."""
    held = [os.open("/dev/null", os.O_RDONLY) for _ in range(1100)]
    try:
        trial.call("nothing")
    finally:
        for descriptor in held:
            os.close(descriptor)


def test_an_interpreter_that_does_not_start(monkeypatch, caplog):
    """An interpreter that exits at once is treated like one that cannot be started."""
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with TrialProcess(WORK) as trial:
        trial.call("nothing")

    assert "it ended with 1" in caplog.text


class TestOpenTried:
    """Models that are tried before they are opened in this process."""

    def test_a_good_model(self):
        """A model is opened here after its trial succeeded."""
        found = open_tried(text(parse(MLP)), feeds={"x": np.ones((1, 4), np.float32)})

        assert ["x"] == [spec.name for spec in found.inputs]

    def test_a_crashing_model(self, tmp_path):
        """With the disabled optimizers enabled, the real runtime crashes in the trial process and not here."""
        code = (
            "import sys, pathlib\n"
            "from demi.errors import CrashError\n"
            "from demi.runtime.onnxruntime.first_open import open_tried\n"
            "try: open_tried(pathlib.Path(sys.argv[1]))\n"
            "except CrashError as error: print(error.message)\n"
        )
        (tmp_path / "m.onnx").write_bytes(CASES["half"])
        (tmp_path / "sitecustomize.py").write_text(
            "import demi.runtime.onnxruntime.session as ort\nort.disabled_optimizers = lambda *_: set()\n",
            encoding="utf-8",
        )
        paths = os.pathsep.join([str(tmp_path), *(path or os.getcwd() for path in sys.path)])
        ended = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "m.onnx")],
            check=True,
            capture_output=True,
            text=True,
            env=os.environ | {"PYTHONPATH": paths},
        )
        if not ended.stdout:
            pytest.skip("this ONNX Runtime opens it")

        assert "died with SIGSEGV (signal 11) while opening `m.onnx` in ONNX Runtime" in ended.stdout
