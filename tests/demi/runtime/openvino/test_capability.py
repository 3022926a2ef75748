"""What a CPU can do in half precision, read from its flags."""

from __future__ import annotations

import pytest

from demi.runtime.openvino.capability import Cpu, formats_for, lacking_units, read_cpu

SAPPHIRE_RAPIDS = Cpu("Xeon", 2, frozenset({"avx512_bf16", "avx512_fp16", "amx_bf16", "amx_tile"}))
WITHOUT_MATRICES = Cpu("Xeon", 2, frozenset({"avx512_bf16", "avx512_fp16"}))
OLD = Cpu("Opteron", 1, frozenset({"sse2"}))

X86 = """processor\t: 0
model name\t: Some Xeon
flags\t\t: sse2 avx512_bf16

processor\t: 1
model name\t: Some Xeon
flags\t\t: sse2 avx512_bf16
"""

ARM = """processor\t: 0
Features\t: fp asimd asimdhp bf16
CPU implementer\t: 0x41
CPU part\t: 0xd40
"""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (X86, Cpu("Some Xeon", 2, frozenset({"sse2", "avx512_bf16"}))),
        (ARM, Cpu("Arm 0x41/0xd40", 1, frozenset({"fp", "asimd", "asimdhp", "bf16"}))),
    ],
)
def test_name_cores_and_flags(tmp_path, text, expected):
    """Intel and AMD have a name, Arm has numbers."""
    (tmp_path / "cpuinfo").write_text(text)

    assert expected == read_cpu(tmp_path / "cpuinfo")


def test_another_system(tmp_path):
    """Where nothing is told, there are no flags, and half units are never assumed."""
    assert frozenset() == read_cpu(tmp_path / "nothing").flags


@pytest.mark.parametrize(
    ("cpu", "expected"),
    [
        (SAPPHIRE_RAPIDS, "Xeon with AMX-BF16, AVX512-FP16, AVX512-BF16"),
        (WITHOUT_MATRICES, "Xeon with AVX512-FP16, AVX512-BF16"),
        (OLD, "Opteron with no half units"),
    ],
)
def test_units_are_named(cpu, expected):
    """Matrix units first."""
    assert expected == str(cpu)


@pytest.mark.parametrize(
    ("cpu", "precision", "expected"),
    [
        (SAPPHIRE_RAPIDS, "bf16", None),
        (SAPPHIRE_RAPIDS, "fp16", "no matrix units for fp16; it has some for bf16"),
        (WITHOUT_MATRICES, "bf16", "Xeon with AVX512-FP16, AVX512-BF16 has no matrix units for bf16"),
    ],
)
def test_matrix_units_that_a_cpu_lacks(cpu, precision, expected):
    """Each type has its own, and the sentence names the other type where that one has some."""
    found = lacking_units(cpu, precision)

    assert expected is found if expected is None else expected in (found or "")


@pytest.mark.parametrize(
    ("cpu", "expected"), [(WITHOUT_MATRICES, True), (OLD, False), (Cpu("unknown", 1, frozenset()), True)]
)
def test_units_of_any_kind(cpu, expected):
    """Where nothing is known of a CPU, only trying tells."""
    assert expected is cpu.has_units("bf16")


@pytest.mark.parametrize(
    ("cpu", "expected", "why"),
    [
        (SAPPHIRE_RAPIDS, ("bf16", "fp16"), "has matrix units for bf16"),
        (Cpu("Xeon", 2, SAPPHIRE_RAPIDS.flags | {"amx_fp16"}), ("fp16", "bf16"), "the more accurate format"),
        (WITHOUT_MATRICES, ("fp16", "bf16"), "has no matrix units"),
        (Cpu("EPYC", 2, frozenset({"avx512_bf16"})), ("bf16",), "has units for bf16 alone"),
        (OLD, ("fp16",), "has no matrix units"),
        (Cpu("unknown", 1, frozenset()), ("fp16",), "has no matrix units"),
    ],
)
def test_the_formats_for_a_cpu(cpu, expected, why):
    """Matrix units decide which is first, then accuracy; a format without units is not tried after one with some."""
    found, reason = formats_for(cpu)

    assert (expected, True) == (found, why in reason)


def test_another_flag_is_another_cpu():
    """A measurement belongs to the name and every flag."""
    assert SAPPHIRE_RAPIDS.identity != WITHOUT_MATRICES.identity
