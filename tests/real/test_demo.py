"""The last lines of `make demo`: what half is worth on this machine."""

from __future__ import annotations

from typing import Any

import pytest

from examples.demo import half_here


def found(speedup: float, *, real: float | None) -> dict[str, Any]:
    """Return what `demi bench --json` prints, as far as the demo reads it."""
    return {
        "machine": "2 cores of a CPU",
        "batches": [{"half": {"batch": 8}, "speedup": speedup}],
        "memory": {"fp32": {"own_bytes": 120 * 2**20}, "half": {"own_bytes": 80 * 2**20}},
        "outputs": [{"relative_l2": real or 1e-3}],
        "outputs_emulated": None if real is None else [{"relative_l2": 1.39e-3}],
    }


@pytest.mark.parametrize(
    ("speedup", "real", "expected", "unexpected"),
    [
        (3.5, 1.4e-3, ["3.50 times as fast", "0.0014 on this CPU, 0.0014 predicted"], ["half is not faster"]),
        (0.9, 1.4e-3, ["0.90 times as fast", "half is not faster here"], ["no FP16 hardware"]),
        (0.9, None, ["no FP16 hardware", "half is not faster here"], ["on this CPU, "]),
    ],
    ids=["half pays", "half is slower", "no FP16 hardware"],
)
def test_what_half_is_worth(speedup, real, expected, unexpected):
    """Speed, memory and error are shown where the CPU computes in half; elsewhere the lines say that it does not."""
    said = "\n".join(half_here(found(speedup, real=real)))

    assert "2 cores of a CPU" in said
    assert "120 MiB in FP32, 80 MiB in half" in said
    assert all(words in said for words in expected)
    assert not any(words in said for words in unexpected)
