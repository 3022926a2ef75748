"""The examples of docs/python.md, run one after another as written."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import onnx
import onnx.parser
import pytest

import demi
from tests.paths import ROOT

PAGE = ROOT / "docs" / "python.md"
BLOCKS = "# blocks until"
"""First line of an example that does not return; tests/demi/test_api.py calls its function."""

MODEL = """<ir_version: 8, opset_import: ["" : 18]>
tiny (float[batch, 8] x) => (float[batch, 4] y)
<float[8, 4] w = {0.5, 1.0, -0.5, 0.25, 0.5, 1.0, -0.5, 0.25, 0.5, 1.0, -0.5, 0.25, 0.5, 1.0, -0.5, 0.25,
                  0.5, 1.0, -0.5, 0.25, 0.5, 1.0, -0.5, 0.25, 0.5, 1.0, -0.5, 0.25, 0.5, 1.0, -0.5, 0.25}>
{ product = MatMul(x, w)
  y = Tanh(product) }"""


def examples(page: str) -> list[str]:
    """Return the Python examples of a page that return."""
    return [block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if BLOCKS not in block]


def run_examples(blocks: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run examples in one fresh process, in a folder that holds `model.onnx`."""
    onnx.save(onnx.parser.parse_model(MODEL), folder / "model.onnx")
    return subprocess.run(
        [sys.executable, "-W", "error::SyntaxWarning", "-c", "\n".join(blocks)],
        cwd=folder,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(folder)},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_the_examples_run(tmp_path):
    """All examples run in the order of the page."""
    blocks = examples(PAGE.read_text())
    ended = run_examples(blocks, tmp_path)

    assert 5 <= len(blocks)
    assert 0 == ended.returncode, ended.stderr
    assert "models/tiny/1" in ended.stdout
    assert (tmp_path / "mixed.onnx").is_file()


def test_a_wrong_example_is_found(tmp_path):
    """An example with an unknown name ends the process with an error."""
    assert 1 == run_examples(["import demi\ndemi.exprot('model.onnx')"], tmp_path).returncode


@pytest.mark.parametrize("name", [name for name in demi.__all__ if name not in ("Model", "__version__")])
def test_every_public_function_is_in_the_table(name):
    """The page's table lists all of `demi.__all__`."""
    assert f"| `demi.{name}(" in PAGE.read_text()
