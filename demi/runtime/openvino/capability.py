"""Half precision on a CPU: the units that it has, and the reason if half will bring no time.

A CPU that stores half and multiplies it at FP32's pace saves memory and no time; matrix units multiply it many times as
fast. Only a measurement on the machine decides (`demi.proofs`): this module names what there is.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")

MATRIX = {"fp16": ("amx_fp16", "sme"), "bf16": ("amx_bf16", "sme")}
"""Flags of /proc/cpuinfo for units that multiply whole matrices of a half type: Intel's AMX and Arm's SME."""
VECTOR = {"fp16": ("avx512_fp16", "asimdhp"), "bf16": ("avx512_bf16", "avx_ne_convert", "bf16")}
"""Flags for vector instructions in a half type: they save conversions, and are not much faster than FP32."""
NAMES = {
    "amx_fp16": "AMX-FP16",
    "amx_bf16": "AMX-BF16",
    "avx512_fp16": "AVX512-FP16",
    "avx512_bf16": "AVX512-BF16",
    "avx_ne_convert": "AVX-NE-CONVERT",
    "asimdhp": "Arm FP16",
    "bf16": "Arm BF16",
    "sme": "Arm SME",
}
CAPABILITIES = {"fp16": "FP16", "bf16": "BF16"}
"""OpenVINO's names of the half types in OPTIMIZATION_CAPABILITIES."""


@dataclass(frozen=True, slots=True)
class Cpu:
    """A processor: its name, how many cores the system shows, and the flags of its instruction sets."""

    name: str
    cores: int
    flags: frozenset[str]

    def __str__(self) -> str:
        return f"{self.name} with {', '.join(self.half_units()) or 'no half units'}"

    @property
    def identity(self) -> str:
        """Name and every flag, in one line: what a measurement made on this CPU belongs to."""
        return f"{self.name}: {' '.join(sorted(self.flags))}"

    def half_units(self) -> list[str]:
        """The names of the units that compute in either half type, such as `AVX512-BF16`."""
        wanted = [flag for table in (MATRIX, VECTOR) for flags in table.values() for flag in flags]
        return [NAMES[flag] for flag in dict.fromkeys(wanted) if flag in self.flags]

    def multiplies(self, precision: str) -> bool:
        """Return whether it has matrix units for `fp16` or `bf16`."""
        return not self.flags.isdisjoint(MATRIX[precision])

    def has_units(self, precision: str) -> bool:
        """Return whether it has any unit for `fp16` or `bf16`; True if nothing is known of it, as outside of Linux."""
        return not self.flags or not self.flags.isdisjoint({*MATRIX[precision], *VECTOR[precision]})


def read_cpu(cpuinfo: Path = _CPUINFO) -> Cpu:
    """The processor of this machine, as Linux describes it; elsewhere a name without flags."""
    try:
        lines = cpuinfo.read_text(errors="replace").splitlines()
    except OSError:
        return Cpu(platform.processor() or platform.machine(), 1, frozenset())
    fields = [
        (key.strip().lower(), value.strip()) for key, colon, value in (line.partition(":") for line in lines) if colon
    ]
    names = [value for key, value in fields if key == "model name"]
    flags = next((value for key, value in fields if key in ("flags", "features")), "")
    cores = sum(key == "processor" for key, _ in fields)
    return Cpu(names[0] if names else _arm_name(fields), max(cores, 1), frozenset(flags.split()))


def formats_for(cpu: Cpu) -> tuple[tuple[str, ...], str]:
    """Return the half formats that are worth a try on a CPU, the most promising first, and the reason for that one.

    Matrix units decide, then accuracy. A format without any units is only there if none has some.
    """
    first, why = _first_for(cpu)
    second = "bf16" if first == "fp16" else "fp16"
    return (first, second) if cpu.flags and cpu.has_units(second) else (first,), why


def _first_for(cpu: Cpu) -> tuple[str, str]:
    if cpu.multiplies("fp16"):
        return "fp16", f"{cpu} has matrix units for fp16, the more accurate format"
    if cpu.multiplies("bf16"):
        return "bf16", f"{cpu} has matrix units for bf16"
    if cpu.flags and cpu.has_units("bf16") and not cpu.has_units("fp16"):
        return "bf16", f"{cpu} has units for bf16 alone"
    return "fp16", f"{cpu} has no matrix units, and fp16 is the more accurate format"


def lacking_units(cpu: Cpu, precision: str) -> str | None:
    """Return, in a sentence, that a CPU has no matrix units for a half format; None where it has some.

    Half may be faster without them: FP16 in OpenVINO took half of FP32's time on a CPU with AVX512-FP16. So this is no
    verdict.
    """
    if cpu.multiplies(precision):
        return None
    other = next((name for name in MATRIX if name != precision and cpu.multiplies(name)), None)
    return f"{cpu} has no matrix units for {precision}" + (f"; it has some for {other}" if other else "")


def _arm_name(fields: list[tuple[str, str]]) -> str:
    """An Arm core by the numbers that Linux shows in place of a name: `Arm 0x41/0xd40`, or the machine's type."""
    found = dict(reversed(fields))
    maker, part = found.get("cpu implementer"), found.get("cpu part")
    return f"Arm {maker}/{part}" if maker and part else platform.machine()
