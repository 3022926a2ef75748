"""OpenVINO's properties."""

from __future__ import annotations

import pytest

from demi.runtime.openvino.options import OvSettings, cpu_options


@pytest.mark.parametrize("hint", ["f32", "f16", "bf16", "dynamic"])
def test_the_precision_is_never_left_to_openvino(hint):
    """Without a hint an FP32 model would be computed in BF16 on some machines."""
    assert hint == cpu_options(OvSettings(hint))["INFERENCE_PRECISION_HINT"]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (OvSettings("f32", threads=3, streams=2), {"INFERENCE_NUM_THREADS": "3", "NUM_STREAMS": "2"}),
        (OvSettings("f32", profile=True), {"NUM_STREAMS": "1", "PERF_COUNT": "YES"}),
    ],
)
def test_threads_streams_and_times(settings, expected):
    """The properties have the threads and streams of the settings, and times if they are asked for."""
    assert expected.items() <= cpu_options(settings).items()


def test_threads_of_every_core_are_openvinos_own_choice():
    """0 threads leave the choice to OpenVINO."""
    assert "INFERENCE_NUM_THREADS" not in cpu_options(OvSettings("f32"))
