"""The death of a process, in words: which signal, what it was doing, what that means and what to do next."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Mapping
from typing import IO

from demi.errors import CrashError, InputError

DEFECT_THERE = (
    "this is a defect of the library at work, not of your input: report it there, with the model; "
    "--keep-fp32 or another version of the library may avoid it"
)

MEANINGS: dict[str, tuple[str, str]] = {
    # The signal: what the process did to get it, and what may help.
    "SIGSEGV": ("it touched memory that is not its own", DEFECT_THERE),
    "SIGBUS": (
        "it touched memory that is not there",
        "was a file cut short while it was read? If not, " + DEFECT_THERE,
    ),
    "SIGILL": (
        "it used an instruction that this CPU does not have",
        "install builds of the packages that are made for this CPU",
    ),
    "SIGFPE": ("it divided an integer by zero", DEFECT_THERE),
    "SIGABRT": ("it gave up", DEFECT_THERE),
    "SIGKILL": (
        "somebody killed it: when memory runs out, the system does",
        "give it more memory, or smaller and fewer samples; `dmesg` says whether it was the system",
    ),
    "SIGXCPU": ("it used up the CPU time it was given", "raise `ulimit -t`"),
    "SIGSYS": ("it asked the system for what it must not", "look at the container's seccomp profile"),
}


LIMIT = "DEMI_NATIVE_SECONDS"
LIMIT_S = 600.0


def native_limit_s(environ: Mapping[str, str] = os.environ) -> float:
    """Seconds that opening a model, and its first run, may take before the process counts as hung; 0 is no limit."""
    try:
        return float(environ.get(LIMIT, LIMIT_S))
    except ValueError:
        raise InputError(f"{LIMIT} is no number of seconds", hint=f"leave it out, or set {LIMIT}=600") from None


def words_file() -> IO[bytes] | None:
    """A file without a name, for what a process says; None where nothing can be written, as on a read-only root."""
    try:
        return tempfile.TemporaryFile()
    except OSError:
        return None


def last_line(words: IO[bytes]) -> str:
    """The last line that a process wrote to a file; empty where there is none."""
    words.seek(max(words.seek(0, os.SEEK_END) - 4096, 0))
    lines = words.read().decode(errors="replace").strip().splitlines()
    return lines[-1].strip()[:200] if lines else ""


def died(status: int, doing: str, words: str = "") -> CrashError:
    """The error for a process that ended while it was `doing` something, with its last words.

    `status` is the number of a signal, negative, or an exit code.
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
    """The error for a process that was stopped since it did not come to an end; `limit` is the name of the setting."""
    return CrashError(
        f"the process hung while {doing}: no end after {limit_s:g} s",
        hint=f"where it is only slow, allow more with {limit} (0 is no limit); if it hangs, " + DEFECT_THERE,
    )


def signal_name(number: int) -> str:
    """`SIGSEGV` for 11."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
