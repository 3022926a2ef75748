"""Run a command where only it can be reached: `python -m bench.scale.isolated COMMAND...`.

Ray's HAProxy mode listens on all interfaces, and Ray itself runs whatever reaches its ports. So the command gets network and
process namespaces of its own: it sees nothing but a loopback interface, and whatever it leaves behind ends with it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import struct
import subprocess
import sys

_INSIDE = "DEMI_BENCH_ISOLATED"
_UNSHARE = ("unshare", "--map-root-user", "--net", "--pid", "--fork", "--kill-child", "--mount-proc")
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1


def is_isolated() -> bool:
    """Return whether this process runs in namespaces that this module made."""
    return os.environ.get(_INSIDE) == "1"


def reason_against() -> str:
    """Return why this machine cannot isolate a command; empty if it can."""
    if shutil.which("unshare") is None:
        return "there is no `unshare` command (package util-linux)"
    tried = subprocess.run([*_UNSHARE, "true"], capture_output=True, text=True)
    return tried.stderr.strip() if tried.returncode else ""


def isolate(command: list[str]) -> int:
    """Run a command in namespaces of its own, and return its exit code."""
    inside = [sys.executable, "-m", "bench.scale.isolated", *command]
    return subprocess.run([*_UNSHARE, *inside], env={**os.environ, _INSIDE: "1"}).returncode


def raise_loopback() -> None:
    """Switch the loopback interface on, which is off in a new namespace."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        asked = struct.pack("16sh14x", b"lo", 0)
        flags = struct.unpack("16sh14x", fcntl.ioctl(sock, _SIOCGIFFLAGS, asked))[1]
        fcntl.ioctl(sock, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", flags | _IFF_UP))


def main(command: list[str]) -> int:
    """Isolate a command, or, inside the namespaces, run it."""
    if is_isolated():
        raise_loopback()
        return subprocess.run(command).returncode
    if reason := reason_against():
        print(f"error: this machine cannot isolate a command: {reason}", file=sys.stderr)
        return 3
    return isolate(command)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
