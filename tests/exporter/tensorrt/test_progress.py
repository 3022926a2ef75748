"""Progress and cancellation of a build."""

import threading

import pytest

from demi.exporter.tensorrt.progress import Progress, run_interruptibly


def test_phases_within_phases():
    """The share counts whole steps, and the part of a step that a phase within it has done."""
    progress = Progress()
    progress.begin("build", None, 4)
    assert 0.0 == progress.share

    progress.step("build", 0)
    progress.begin("timing", "build", 10)
    progress.step("timing", 4)
    assert 0.375 == progress.share


def test_it_never_falls():
    """TensorRT's phases come and go; the bar never moves back."""
    progress = Progress()
    progress.begin("first", None, 2)
    progress.step("first", 0)
    assert 0.5 == progress.share

    progress.end("first")
    progress.begin("second", None, 10)
    assert 0.5 == progress.share


def test_a_phase_without_steps():
    """No division by zero; a step of an unknown phase is ignored."""
    progress = Progress()
    progress.begin("empty", None, 0)

    assert progress.step("unknown", 3)
    assert 0.0 == progress.share


def test_the_work_runs_on_a_second_thread():
    """Its result is returned, and its progress was reported meanwhile."""
    progress, reported, seen = Progress(), [], threading.Event()

    def work():
        progress.begin("build", None, 2)
        progress.step("build", 0)
        assert seen.wait(5)
        return threading.current_thread().name

    def report(share):
        reported.append(share)
        seen.set()

    assert "demi-build" == run_interruptibly(work, progress, report)
    assert 0.5 in reported


def test_an_error_comes_back_as_it_was():
    """An exception on the other thread is raised here."""
    with pytest.raises(ZeroDivisionError):
        run_interruptibly(lambda: 1 // 0, Progress(), None)


def test_ctrl_c_stops_the_work_and_waits_for_it():
    """The next callback cancels the work, which has ended before KeyboardInterrupt is raised."""
    progress, ended = Progress(), []

    def work():
        while progress.step("build", 0):
            pass
        ended.append(True)

    def interrupt(share):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_interruptibly(work, progress, interrupt)
    assert [True] == ended
