"""Fixtures for tests of commands."""

from __future__ import annotations

import re

import pytest

from demi.cli.main import main


@pytest.fixture
def demi(tmp_path, monkeypatch, capsys):
    """Runs a command in an empty folder; returns (exit code, stdout, stderr without what took long on this machine)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments):
        code = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return code, out, re.sub(r"^.*: \d+\.\d s\n", "", err, flags=re.MULTILINE)

    return run
