"""Commands in namespaces of their own: nothing reaches them, and nothing of them stays."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from bench.scale.isolated import reason_against

pytestmark = pytest.mark.skipif(bool(reason_against()), reason=f"namespaces cannot be had: {reason_against()}")


def isolated(code: str) -> subprocess.CompletedProcess[str]:
    """Run Python code in namespaces of its own."""
    command = [sys.executable, "-m", "bench.scale.isolated", sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_only_loopback_is_there():
    """And it is on: a server can be reached by its own clients."""
    code = """
import socket
listener = socket.create_server(("127.0.0.1", 0))
socket.create_connection(listener.getsockname()).close()
print([name for _, name in socket.if_nameindex()])
"""
    ended = isolated(code)

    assert "['lo']\n" == ended.stdout, ended.stderr


def test_what_a_command_leaves_behind_ends_with_it():
    """A process in the background would go on in the machine's own namespace."""
    marker = f"marker-{os.getpid()}"
    ended = isolated(f"import subprocess; subprocess.Popen(['sh', '-c', 'sleep 60; : {marker}'])")
    running = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout

    assert 0 == ended.returncode
    assert marker not in running


def test_the_exit_code_is_the_commands():
    """Tests that fail in there fail out here."""
    assert 7 == isolated("raise SystemExit(7)").returncode
