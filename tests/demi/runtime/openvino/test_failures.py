"""OpenVINO's messages, shortened."""

from __future__ import annotations

import pytest

from demi.runtime.openvino.failures import LONGEST, is_cancelled, reason

LONG = """Exception from src/inference/src/cpp/core.cpp:117:
Exception from src/inference/src/dev/plugin.cpp:54:
Check '!shape.rank().is_dynamic()' failed at src/plugins/intel_cpu/src/node.cpp:108:
CPU plug-in doesn't support Reshape operation with dynamic rank. Operation name: y

"""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (LONG, "CPU plug-in doesn't support Reshape operation with dynamic rank. Operation name: y"),
        ("", "RuntimeError"),
        ("name\nwith\rlines", "name with lines"),
        ("x" * 1000, "x" * (LONGEST - 3) + "..."),
    ],
)
def test_one_line(text, expected):
    """Source locations are removed, and names cannot forge lines."""
    assert expected == reason(RuntimeError(text))


@pytest.mark.parametrize(("text", "expected"), [("Infer Request was canceled", True), ("out of memory", False)])
def test_a_stopped_run(text, expected):
    """A stopped run is recognized by its message."""
    assert expected is is_cancelled(RuntimeError(text))
