"""The map of the code: which package may import which, and where each heavy library lives."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOTS = ("demi", "exporter", "calibration", "server")

FRONT_DOORS = ("demi/cli/", "demi/testing.py", "demi/pytest_plugin.py")
FRONT_MODULES = ("demi.cli", "demi.testing", "demi.pytest_plugin")

FORBIDDEN = {
    # Where a rule holds: what must not be imported there. The front doors may open every room.
    "demi/": ("exporter", "calibration", "server"),
    "calibration/": ("exporter", "server", *FRONT_MODULES),
    "exporter/": ("server", *FRONT_MODULES),
    "server/": ("exporter", "calibration", *FRONT_MODULES, "torch", "onnx", "onnx_ir", "onnxruntime"),
}
HOMES = {
    # One heavy library, one home.
    "torch": ("exporter/pytorch/",),
    "onnxruntime": ("demi/runtime/ort.py",),
    "tensorrt": ("demi/runtime/trt.py",),
    "cuda": ("demi/runtime/cuda.py",),
    "matplotlib": ("calibration/report/charts.py",),
    "jinja2": ("calibration/report/page.py",),
    "fastapi": ("server/",),
    "starlette": ("server/",),
    "uvicorn": ("server/",),
    "grpc": ("server/grpc/", "server/run.py"),
    "google.protobuf": ("server/grpc/",),
    "pytest": ("demi/pytest_plugin.py",),
    "opentelemetry": ("server/tracing.py",),
}


def imports(source: str) -> set[str]:
    """Every module that a source file imports, at its top or inside a function."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def violations(files: dict[str, str]) -> list[str]:
    """One line for each import that the map does not allow."""
    return [
        f"{path} imports {module}"
        for path, source in files.items()
        for module in imports(source)
        if is_bad(path, module)
    ]


def is_bad(path: str, module: str) -> bool:
    """Whether the map forbids this import in this file."""
    within = [name for place, names in FORBIDDEN.items() if path.startswith(place) for name in names]
    if path.startswith(FRONT_DOORS):
        within = []
    homes = [home for library, home in HOMES.items() if belongs(module, library)]
    return any(belongs(module, name) for name in within) or any(not path.startswith(home) for home in homes)


def belongs(module: str, package: str) -> bool:
    """Whether a module is the package or below it."""
    return f"{module}.".startswith(f"{package}.")


def sources() -> dict[str, str]:
    """Every source file of the four packages, by its path."""
    return {
        path.relative_to(ROOT).as_posix(): path.read_text()
        for root in ROOTS
        for path in sorted((ROOT / root).rglob("*.py"))
    }


def test_code_keeps_to_the_map():
    """No file of the four packages imports what is not in its layer."""
    assert [] == violations(sources())


def test_every_package_is_looked_at():
    """The map is drawn of the real files."""
    assert set(ROOTS) == {path.split("/")[0] for path in sources()}


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("demi/bundle.py", "from exporter.find import PlanSettings"),
        ("demi/tensors.py", "import calibration.check"),
        ("demi/tensors.py", "def f():\n    from server import wire"),
        ("calibration/judge.py", "from exporter import schemas"),
        ("calibration/check.py", "from demi.testing import check"),
        ("demi/testing.py", "import pytest"),
        ("exporter/planner.py", "import server.settings as s"),
        ("server/wire.py", "from exporter.find import PlanSettings"),
        ("server/wire.py", "import onnx.helper"),
        ("server/model.py", "import onnxruntime"),
        ("server/model.py", "import torch"),
        ("exporter/planner.py", "import torch"),
        ("exporter/source.py", "import torch"),
        ("calibration/emulate.py", "def f():\n    import torch.nn as nn"),
        ("demi/cli/export.py", "import torch"),
        ("calibration/sessions.py", "import onnxruntime as ort"),
        ("exporter/pipeline.py", "from tensorrt import Builder"),
        ("demi/runtime/trt.py", "from cuda.bindings import runtime"),
        ("demi/cli/bench.py", "from fastapi import FastAPI"),
        ("server/model.py", "import grpc.aio"),
        ("server/wire.py", "from google.protobuf.message import Message"),
        ("demi/cli/bench.py", "import matplotlib.pyplot as plt"),
        ("calibration/report/charts.py", "import jinja2"),
        ("server/routes/infer.py", "from opentelemetry import trace"),
    ],
)
def test_violation_is_found(path, line):
    """An import from another layer, or of a library away from its home, is found wherever it stands."""
    assert any(found.startswith(f"{path} imports ") for found in violations({path: line}))


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("demi/cli/export.py", "from exporter.pipeline import export_bundle"),
        ("exporter/pipeline.py", "from calibration.judge import Judge"),
        ("server/model.py", "from demi.runtime.ort import open_session"),
        ("demi/runtime/ort.py", "import onnxruntime"),
        ("exporter/pytorch/read.py", "import torch.nn"),
        ("demi/runtime/trt.py", "import tensorrt"),
        ("demi/runtime/cuda.py", "import cuda.bindings.runtime"),
        ("server/routes/infer.py", "from fastapi import APIRouter"),
        ("calibration/emulate.py", "import torchlike"),
    ],
)
def test_what_is_allowed_passes(path, line):
    """Imports within the map are fine."""
    assert [] == violations({path: line})
