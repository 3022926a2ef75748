"""A command that crashes: reported, cleaned up after, and distinguished from one that was stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from demi.cli import supervisor
from tests.demi.runtime.onnxruntime.test_disabled_optimizers import CASES
from tests.paths import ROOT

USER = """
import os, signal, sys, time
import numpy as np

X = {"x": np.zeros((3, 7, 64), np.float16)}

def segv():
    os.kill(os.getpid(), signal.SIGSEGV)

def kill():
    os.kill(os.getpid(), signal.SIGKILL)

def leave():
    os._exit(0)

def undefended():
    import demi.runtime.onnxruntime.session as ort
    ort.disabled_optimizers = lambda *_: set()
    yield X

def hanging():
    import demi.runtime.onnxruntime.session as ort
    runtime = ort.require_runtime()
    class Hanging:
        def __getattr__(self, name):
            return getattr(runtime, name)
        def InferenceSession(self, *_, **__):
            time.sleep(100)
    ort.require_runtime = lambda *_: Hanging()
    yield X

def within_a_draft():
    from pathlib import Path
    from demi.bundles.bundle import writing
    with writing(Path("out/m/1")) as draft:
        (draft / "model.onnx").write_text("half of it")
        print("here", os.getpid(), file=sys.stderr, flush=True)
        time.sleep(60)
    yield X

def stubborn():
    from demi.bundles.drafts import draft_beside
    from pathlib import Path
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    with draft_beside(Path("m")):
        print("here", os.getpid(), file=sys.stderr, flush=True)
        time.sleep(60)
    yield X
"""
"""Samples from user code that crash, hang, or disable the runtime's safeguards."""


@pytest.fixture
def folder(tmp_path):
    """A folder with a model that this runtime dies of, and the user's module."""
    (tmp_path / "m.onnx").write_bytes(CASES["half, then single"])
    (tmp_path / "user.py").write_text(USER, encoding="utf-8")
    return tmp_path


def command(sample: str, *flags: str) -> list[str]:
    """`demi export` with the user's samples."""
    arguments = ["export", "m.onnx", "--sample", f"user:{sample}", "-o", "out/m", "--no-report", *flags]
    return [sys.executable, "-m", "demi", *arguments]


def environment(folder: Path, **more: str) -> dict[str, str]:
    """This environment, in which the user's module can be imported."""
    return os.environ | {"PYTHONPATH": os.pathsep.join((str(ROOT), str(folder)))} | more


def run(folder: Path, sample: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """`demi export` to its end."""
    return subprocess.run(
        command(sample), check=False, capture_output=True, text=True, cwd=folder, env=environment(folder, **environ)
    )


def left(folder: Path) -> set[str]:
    """Return the files that a command has left in the folder."""
    return {path.name for path in folder.iterdir()} - {"m.onnx", "user.py", "__pycache__"}


@pytest.mark.parametrize(
    ("sample", "words"),
    [
        ("segv", "the process died with SIGSEGV (signal 11)"),
        ("kill", "the process died with SIGKILL (signal 9)"),
        ("leave", "the process was ended by a library, with code 0"),
    ],
)
def test_crashes_are_named(folder, sample, words):
    """Exit code 4, one error with a hint, and nothing on stdout."""
    ended = run(folder, sample)

    assert (4, "") == (ended.returncode, ended.stdout)
    assert f"error: {words}" in ended.stderr
    assert "\nhint: " in ended.stderr


def test_a_crash_while_a_bundle_is_written(folder):
    """The real runtime, without what Demi leaves out: the step and the file are named, and nothing is left behind."""
    ended = run(folder, "undefended")
    if ended.returncode == 0:
        pytest.skip("this ONNX Runtime opens the model")

    assert 4 == ended.returncode
    assert "SIGSEGV (signal 11) while writing the bundle, opening `model.onnx` in ONNX Runtime" in ended.stderr
    assert set() == left(folder)


def test_a_hang_is_a_crash(folder):
    """Opening a model has a limit."""
    ended = run(folder, "hanging", DEMI_NATIVE_SECONDS="1")

    assert 4 == ended.returncode
    assert (
        "hung while running FP32 on the samples, opening a model in ONNX Runtime: not finished after 1 s"
        in ended.stderr
    )
    assert set() == left(folder)


class Started:
    """A command that has come to where it waits: its two processes."""

    def __init__(self, folder: Path, sample: str) -> None:
        self.process = subprocess.Popen(
            command(sample),
            stderr=subprocess.PIPE,
            text=True,
            cwd=folder,
            env=environment(folder),
            start_new_session=True,
        )
        assert self.process.stderr is not None
        self.worker = next(int(line.split()[1]) for line in self.process.stderr if line.startswith("here "))

    def end(self) -> tuple[int, str]:
        """The exit code, and what it has said since."""
        assert self.process.stderr is not None
        said = self.process.stderr.read()
        self.process.stderr.close()
        return self.process.wait(20), said


@pytest.mark.parametrize("to_all", [False, True])
@pytest.mark.parametrize(
    ("number", "code", "words"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated by SIGTERM")]
)
def test_signals_let_the_worker_clean_up(folder, number, code, words, to_all):
    """A signal to the process or, as from a terminal, to its group ends the command once, without leftovers."""
    started = Started(folder, "within_a_draft")
    (os.killpg if to_all else os.kill)(started.process.pid, number)

    assert (code, f"{words}; no partial files were left behind\n") == started.end()
    assert set() == left(folder)


def test_a_second_signal_kills(folder):
    """A second signal ends what does not listen to the first; what it would have left is removed."""
    started = Started(folder, "stubborn")
    started.process.send_signal(signal.SIGINT)
    time.sleep(supervisor.IMPATIENT_S + 0.2)
    assert started.process.poll() is None
    started.process.send_signal(signal.SIGINT)

    assert (130, "terminated by SIGINT; no partial files were left behind\n") == started.end()
    assert set() == left(folder)


def test_a_killed_worker_is_reported(folder):
    """By the system when memory runs out, say: its draft goes, and the folders that were made for it."""
    started = Started(folder, "within_a_draft")
    os.kill(started.worker, signal.SIGKILL)
    code, said = started.end()

    assert 4 == code
    assert "died with SIGKILL" in said
    assert set() == left(folder)


def test_a_killed_supervisor_ends_the_worker(folder):
    """Nobody waits for the work any more: it ends in order, too."""
    started = Started(folder, "within_a_draft")
    os.kill(started.process.pid, signal.SIGKILL)
    code, said = started.end()  # which reads until the worker has ended

    assert -signal.SIGKILL == code
    assert "no partial files were left behind" in said
    assert set() == left(folder)


def test_a_launcher_that_ignores_sigchld(folder):
    """The exit code is there all the same."""
    launcher = (
        "import os, signal, sys\nsignal.signal(signal.SIGCHLD, signal.SIG_IGN)\nos.execv(sys.argv[1], sys.argv[1:])"
    )
    ended = subprocess.run(
        [sys.executable, "-c", launcher, *command("segv")],
        check=False,
        capture_output=True,
        text=True,
        cwd=folder,
        env=environment(folder),
    )

    assert 4 == ended.returncode
    assert "SIGSEGV" in ended.stderr


def test_ordinary_exit_codes_are_unchanged(folder):
    """Exit codes and messages of commands that do not crash are unchanged."""
    ended = run(folder, "none")

    assert 2 == ended.returncode
    assert "died" not in ended.stderr


def test_a_process_with_native_code_is_not_split():
    """Half of a process with threads would be no process: this one, say, has long loaded NumPy."""
    assert not supervisor.can_split()


@pytest.mark.parametrize("verbose", [False, True])
def test_output_of_libraries_is_not_shown(folder, verbose):
    """Output of native code is hidden without --verbose; Python's own lines are shown."""
    (folder / "noisy.py").write_text(
        "import os, sys\n"
        "def samples():\n"
        "    os.write(2, b'[W:onnxruntime:Default] no GPU here\\n')\n"
        "    print('from the user', file=sys.stderr)\n"
        "    raise ValueError('enough')\n",
        encoding="utf-8",
    )
    arguments = ["export", "m.onnx", "--sample", "noisy:samples", *(["--verbose"] if verbose else [])]
    ended = subprocess.run(
        [sys.executable, "-m", "demi", *arguments],
        check=False,
        capture_output=True,
        text=True,
        cwd=folder,
        env=environment(folder),
    )

    assert verbose == ("[W:onnxruntime:Default]" in ended.stderr)
    assert "from the user" in ended.stderr


def test_the_last_line_before_a_crash_is_shown(folder):
    """The last output before a crash is part of the error."""
    (folder / "user.py").write_text(
        "import os\ndef aborts():\n    os.write(2, b'std::bad_alloc\\n')\n    os.abort()\n", encoding="utf-8"
    )
    ended = run(folder, "aborts")

    assert 4 == ended.returncode
    assert "died with SIGABRT (signal 6) at work, saying `std::bad_alloc`" in ended.stderr
