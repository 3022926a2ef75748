"""Names from a model cannot control the terminal that shows them, nor begin a line of a log."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from demi.cli.console import Console
from demi.errors import InputError
from demi.printable import printable, printable_json, printable_lines
from tests.paths import ROOT

EVIL = "\x1b]0;title\x07\n::error::forged\n"


class TestPrintable:
    """`printable`, the one function that makes text safe to show."""

    @pytest.mark.parametrize(
        ("text", "shown"),
        [
            ("plain ü 模型", "plain ü 模型"),
            ("a\nb\r\tc", r"a\nb\r\tc"),
            ("\x1b[31m\x9b\x7f", r"\x1b[31m\x9b\x7f"),
            ("a\u2028b\u202ec\u2066d", r"a\u2028b\u202ec\u2066d"),
        ],
    )
    def test_one_line(self, text, shown):
        """Control characters are escaped as in Python; letters are kept."""
        assert shown == printable(text)

    def test_lines(self):
        """Line breaks are kept; later lines are indented, and none is a workflow command."""
        assert "a\n  b\n  \\::error::x\n  \\##[error]y" == printable_lines("a\nb\n ::error::x\n##[error]y", "  ")

    def test_json(self):
        """JSON stays JSON with the same content."""
        document = json.dumps({"a": "\x9b\u202e\x1b"}, ensure_ascii=False)

        assert "\x9b" not in printable_json(document)
        assert json.loads(document) == json.loads(printable_json(document))


class TestConsole:
    """Every way in which a command prints."""

    @pytest.mark.parametrize(
        "say",
        [
            lambda console: console.note(f"a {EVIL}"),
            lambda console: console.warn(EVIL),
            lambda console: console.error(InputError(EVIL, where=EVIL, hint=EVIL)),
            lambda console: console.data(EVIL),
            lambda console: console.json({EVIL: "\x9b31m"}),
            lambda console: console.table(EVIL, ["a", "b"], [[EVIL, EVIL]]),
        ],
        ids=["note", "warn", "error", "data", "json", "table"],
    )
    @pytest.mark.parametrize("verbose", [False, True])
    def test_all(self, capsys, say, verbose):
        """No control character reaches a stream, and no line is a workflow command."""
        say(Console(verbose=verbose))
        out = "".join(capsys.readouterr())

        assert "forged" in out
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", out)
        assert not re.search(r"^\s*::error", out, re.MULTILINE)

    def test_error_of_several_lines(self, capsys):
        """The lines of an error's list are printed below it."""
        Console().error(InputError("failed:\n  one\n  two", where="here", hint="next"))

        assert "error: failed:\n  one\n  two\n  in here\nhint: next\n" == capsys.readouterr().err


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess[bytes]]:
    """Return a folder with a bundle of a model with hostile names, and the output of its export."""
    folder = tmp_path_factory.mktemp("names")
    x = helper.make_tensor_value_info("X" + EVIL, TensorProto.FLOAT, ["batch", 4])
    y = helper.make_tensor_value_info("Y" + EVIL, TensorProto.FLOAT, ["batch", 4])
    weight = numpy_helper.from_array(np.eye(4, dtype=np.float32) * 3e4, "W" + EVIL)
    nodes = [
        helper.make_node("MatMul", ["X" + EVIL, "W" + EVIL], ["h" + EVIL], name="mm" + EVIL),
        helper.make_node("Exp", ["h" + EVIL], ["e" + EVIL], name="exp" + EVIL),
        helper.make_node("Sigmoid", ["e" + EVIL], ["Y" + EVIL], name="s" + EVIL),
    ]
    graph = helper.make_graph(nodes, "g", [x], [y], [weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), folder / "ev.onnx")
    return folder, demi(folder, "export", "--fp16", "ev.onnx", "-o", "b")


def demi(folder: Path, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    """Run a command as users do."""
    command = [sys.executable, "-m", "demi", *arguments]
    root = str(ROOT)
    return subprocess.run(command, cwd=folder, capture_output=True, check=False, env={**os.environ, "PYTHONPATH": root})


class TestCommands:
    """Whole commands."""

    @pytest.mark.parametrize(
        "arguments",
        [
            (),
            ("check", "b"),
            ("explain", "b"),
            ("diff", "b", "b"),
            ("explain", "b", "--json"),
            ("export", "--fp16", "ev.onnx", "-o", "b2", "--budget", f"zz{EVIL}=1"),
        ],
        ids=lambda arguments: " ".join(arguments[:1]) or "first",
    )
    def test_names(self, exported, arguments):
        """Each command shows the names, and none is interpreted by the terminal."""
        folder, first = exported
        ran = demi(folder, *arguments) if arguments else first
        out = (ran.stdout + ran.stderr).decode()

        assert ran.returncode in (0, 1, 2)
        assert "Traceback" not in out
        assert "\x1b" not in out
        assert "\x07" not in out
        assert not re.search(r"^\s*::", out, re.MULTILINE)
