"""Errors for crashed and hung processes: the signal, its meaning, what was being done, and what to do next."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Mapping
from typing import IO

from demi.errors import CrashError, InputError

DEFECT_THERE = (
    "this is a defect of the library, not of your input: report it to the library, with the model; "
    "--keep-fp32 or another version of the library may avoid it"
)

MEANINGS: dict[str, tuple[str, str]] = {
    # Signal: its cause, and a hint.
    "SIGSEGV": ("it accessed invalid memory", DEFECT_THERE),
    "SIGBUS": (
        "it accessed memory that does not exist",
        "was a file truncated while it was read? If not, " + DEFECT_THERE,
    ),
    "SIGILL": (
        "it used an instruction that this CPU does not have",
        "install builds of the packages that are made for this CPU",
    ),
    "SIGFPE": ("it divided an integer by zero", DEFECT_THERE),
    "SIGABRT": ("it aborted", DEFECT_THERE),
    "SIGKILL": (
        "it was killed, which the system does when memory runs out",
        "give it more memory, or smaller and fewer samples; `dmesg` shows whether it was the system",
    ),
    "SIGXCPU": ("it exceeded its limit of CPU time", "raise `ulimit -t`"),
    "SIGSYS": ("it made a forbidden system call", "check the container's seccomp profile"),
}
"""Cause and hint for each signal that ends a process."""


LIMIT = "DEMI_NATIVE_SECONDS"
LIMIT_S = 600.0


def native_limit_s(environ: Mapping[str, str] = os.environ) -> float:
    """Return the seconds that opening a model, or its first run, may take before it counts as hung; 0 for no limit."""
    try:
        return float(environ.get(LIMIT, LIMIT_S))
    except ValueError:
        raise InputError(f"{LIMIT} is not a number of seconds", hint=f"unset it, or set {LIMIT}=600") from None


def words_file() -> IO[bytes] | None:
    """Return an unnamed file for the output of a process; None where none can be created, as on a read-only root."""
    try:
        return tempfile.TemporaryFile()
    except OSError:
        return None


def last_line(words: IO[bytes]) -> str:
    """Return the last line of a process's output file; empty where there is none."""
    words.seek(max(words.seek(0, os.SEEK_END) - 4096, 0))
    lines = words.read().decode(errors="replace").strip().splitlines()
    return lines[-1].strip()[:200] if lines else ""


def died(status: int, doing: str, words: str = "") -> CrashError:
    """Return the error for a process that ended while it was `doing` something; `words` is its last line of output.

    `status` is an exit code, or a negative signal number.
    """
    while_doing = (f"while {doing}" if doing else "at work") + (f", saying `{words}`" if words else "")
    if status >= 0:
        what = f"the process was ended by a library, with code {status}, {while_doing}"
        return CrashError(what, hint=DEFECT_THERE)
    name = signal_name(-status)
    meaning, hint = MEANINGS.get(name, ("", DEFECT_THERE))
    what = f"the process died with {name} (signal {-status}) {while_doing}"
    return CrashError(what + (f": {meaning}" if meaning else ""), hint=hint)


def hung(limit_s: float, doing: str, limit: str = LIMIT) -> CrashError:
    """Return the error for a process that was stopped at its time limit; `limit` is the name of the setting."""
    return CrashError(
        f"the process hung while {doing}: not finished after {limit_s:g} s",
        hint=f"if it is only slow, raise {limit} (0 for no limit); if it hangs, " + DEFECT_THERE,
    )


def signal_name(number: int) -> str:
    """Return the name of a signal: `SIGSEGV` for 11."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
