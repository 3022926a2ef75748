"""The map of the code: which package may import which, and where each heavy library lives."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import pytest

from tests.map import FOLDERS, circles, graph, imports, sources

FRONT_DOORS = (
    "demi/cli/",
    "demi/testing.py",
    "demi/pytest_plugin.py",
    "demi/api.py",
    "demi/model.py",
    "demi/ray.py",
    "demi/__init__.py",
)
FRONT_MODULES = ("demi.cli", "demi.testing", "demi.pytest_plugin", "demi.api", "demi.model", "demi.ray")

FORBIDDEN = {
    # Where a rule holds: what must not be imported there. The front doors may open every room.
    "demi/": ("demi.exporter", "demi.calibration", "demi.server", "demi.training"),
    "calibration/": ("demi.exporter", "demi.server", "demi.training", *FRONT_MODULES),
    "exporter/": ("demi.server", "demi.training", *FRONT_MODULES),
    "exporter/passes/": ("demi.exporter.planning",),
    "training/": ("demi.server", *FRONT_MODULES),
    "server/": (
        "demi.exporter",
        "demi.calibration",
        "demi.training",
        *FRONT_MODULES,
        "torch",
        "onnx",
        "onnx_ir",
        "onnxruntime",
        "transformers",
    ),
}
OUTSIDE = ("exporter", "calibration", "server", "training")
"""Folders of the checkout whose own names are nobody's: they are imported below `demi`, and nowhere by themselves."""

SPINE = (
    ("protocol",),
    ("scheduling",),
    ("accuracy",),
    ("models",),
    ("telemetry",),
    ("joining",),
    ("http", "grpc"),
    ("service.py",),
    ("ray", "run.py"),
)
"""The server's rooms from the ground up: each may import those before it, and neither its neighbour nor those behind.
Files beside them, such as `errors.py` and `settings.py`, are the ground that all stand on."""

HOMES = {
    # One heavy library, one home.
    "torch": ("exporter/pytorch/", "training/"),
    "onnxruntime": ("demi/runtime/onnxruntime/session.py",),
    "tensorrt": ("demi/runtime/tensorrt/session.py",),
    "openvino": ("demi/runtime/openvino/session.py",),
    "cuda": ("demi/runtime/cuda/bindings.py",),
    "matplotlib": ("calibration/report/charts.py",),
    "fsspec": ("demi/remote/storage.py",),
    "oras": ("demi/remote/oci_client.py",),
    "jinja2": ("calibration/report/page.py", "demi/deploy/render.py"),
    "fastapi": ("server/http/",),
    "starlette": ("server/http/",),
    "uvicorn": ("server/http/",),
    "grpc": ("server/grpc/",),
    "google.protobuf": ("server/grpc/",),
    "pytest": ("demi/pytest_plugin.py",),
    "ray": ("server/ray/", "demi/ray.py"),
    "opentelemetry": ("server/telemetry/tracing.py",),
    "tokenizers": ("demi/processing/texts.py",),
    "soundfile": ("demi/processing/sounds.py",),
    "soxr": ("demi/processing/sounds.py",),
}


def violations(files: dict[str, str]) -> list[str]:
    """One line for each import that the map does not allow."""
    return [
        f"{path} imports {module}"
        for path, source in files.items()
        for module in imports(source)
        if is_bad(path, module)
    ]


def is_bad(path: str, module: str) -> bool:
    """Return whether the map forbids this import in this file."""
    within = [name for place, names in FORBIDDEN.items() if path.startswith(place) for name in names]
    if path.startswith(FRONT_DOORS):
        within = []
    within += OUTSIDE
    homes = [home for library, home in HOMES.items() if belongs(module, library)]
    return any(belongs(module, name) for name in within) or any(not path.startswith(home) for home in homes)


def belongs(module: str, package: str) -> bool:
    """Return whether a module is the package or below it."""
    return f"{module}.".startswith(f"{package}.")


def spine_violations(edges: Mapping[str, Iterable[str]]) -> list[str]:
    """One line for each import that goes up the server's spine, or across it."""
    return [
        f"{path} imports {other}"
        for path, others in edges.items()
        for other in others
        if path.startswith("server/") and other.startswith("server/") and not may_import(path, other)
    ]


def may_import(path: str, other: str) -> bool:
    """Return whether the spine allows one file of the server to import another."""
    (room, level), (other_room, other_level) = (_place(each) for each in (path, other))
    return room == other_room or other_level < level


def _place(path: str) -> tuple[str, int]:
    """The room of a file, and its place on the spine: 0 for the ground."""
    room = path.removeprefix("server/").split("/")[0]
    levels = [level for level, names in enumerate(SPINE, start=1) if room in names]
    return (room, levels[0]) if levels else ("", 0)


def test_code_keeps_to_the_map():
    """No file of the four packages imports what is not in its layer."""
    assert [] == violations(sources())


def test_the_server_keeps_to_its_spine():
    """protocol < scheduling < accuracy < models < telemetry < joining < http, grpc < service < ray, run."""
    assert [] == spine_violations(graph(sources()))


def test_no_files_import_each_other():
    """There is no circle of imports, not even through imports inside functions."""
    assert [] == circles(graph(sources()))


@pytest.mark.parametrize(
    ("path", "other"),
    [
        ("server/protocol/body.py", "server/scheduling/batcher.py"),
        ("server/models/model.py", "server/telemetry/metrics.py"),
        ("server/http/app.py", "server/grpc/service.py"),
        ("server/grpc/service.py", "server/http/routes/models.py"),
        ("server/errors.py", "server/protocol/body.py"),
        ("server/http/app.py", "server/run.py"),
        ("server/http/app.py", "server/service.py"),
        ("server/service.py", "server/run.py"),
        ("server/ray/replica.py", "server/run.py"),
    ],
)
def test_import_against_the_spine_is_found(path, other):
    """Upwards, or across from one wire to the other."""
    assert [f"{path} imports {other}"] == spine_violations({path: [other]})


@pytest.mark.parametrize(
    "files",
    [
        {"demi/a.py": "import demi.b", "demi/b.py": "def f():\n    from demi import a"},
        {
            "exporter/a.py": "from demi.exporter.b import x",
            "exporter/b.py": "from demi.exporter import c",
            "exporter/c.py": "from demi.exporter.a import y",
        },
    ],
)
def test_circle_is_found(files):
    """Of two files or of more, at the top or inside a function."""
    assert [frozenset(files)] == circles(graph(files))


def test_every_package_is_looked_at():
    """The map is drawn of the real files."""
    assert set(FOLDERS) == {path.split("/")[0] for path in sources()}


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("demi/bundles/bundle.py", "from demi.exporter.planning.find_plan import PlanSettings"),
        ("demi/tensors.py", "import demi.calibration.gate.check"),
        ("demi/tensors.py", "def f():\n    from demi.server import settings"),
        ("calibration/emulation/trials.py", "from demi.exporter import schemas"),
        ("calibration/gate/check.py", "from demi.testing import check"),
        ("demi/testing.py", "import pytest"),
        ("exporter/planning/planner.py", "import demi.server.settings as s"),
        ("server/protocol/body.py", "from demi.exporter.planning.find_plan import PlanSettings"),
        ("server/protocol/body.py", "import onnx.helper"),
        ("server/models/model.py", "import onnxruntime"),
        ("server/models/model.py", "import torch"),
        ("server/service.py", "from ray import serve"),
        ("exporter/planning/planner.py", "import torch"),
        ("exporter/open_source.py", "import torch"),
        ("calibration/emulation/widen.py", "def f():\n    import torch.nn as nn"),
        ("demi/cli/export.py", "import torch"),
        ("calibration/sessions.py", "import onnxruntime as ort"),
        ("exporter/pipeline.py", "from tensorrt import Builder"),
        ("demi/runtime/tensorrt/session.py", "from cuda.bindings import runtime"),
        ("calibration/benchmark/bench.py", "import openvino"),
        ("demi/cli/bench.py", "from fastapi import FastAPI"),
        ("server/models/model.py", "import grpc.aio"),
        ("server/protocol/body.py", "from google.protobuf.message import Message"),
        ("demi/cli/bench.py", "import matplotlib.pyplot as plt"),
        ("calibration/report/charts.py", "import jinja2"),
        ("server/http/routes/infer.py", "from opentelemetry import trace"),
        ("server/models/model.py", "from server.errors import NotFoundError"),
        ("demi/cli/export.py", "import exporter"),
        ("exporter/passes/lower.py", "from demi.exporter.planning.op_list import decide"),
    ],
)
def test_violation_is_found(path, line):
    """An import from another layer, or of a library away from its home, is found wherever it stands."""
    assert any(found.startswith(f"{path} imports ") for found in violations({path: line}))


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("demi/cli/export.py", "from demi.exporter.pipeline import export_bundle"),
        ("exporter/pipeline.py", "from demi.calibration.emulation.trials import TrialRunner"),
        ("server/models/model.py", "from demi.runtime.onnxruntime.session import open_session"),
        ("demi/runtime/onnxruntime/session.py", "import onnxruntime"),
        ("exporter/pytorch/read.py", "import torch.nn"),
        ("demi/runtime/tensorrt/session.py", "import tensorrt"),
        ("demi/runtime/openvino/session.py", "import openvino"),
        ("demi/runtime/cuda/bindings.py", "import cuda.bindings.runtime"),
        ("server/http/routes/infer.py", "from fastapi import APIRouter"),
        ("calibration/emulation/widen.py", "import torchlike"),
    ],
)
def test_what_is_allowed_passes(path, line):
    """Imports within the map are fine."""
    assert [] == violations({path: line})
