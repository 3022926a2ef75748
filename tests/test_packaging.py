"""The wheel, in a fresh environment as a server has it: without PyTorch and onnx."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import sysconfig
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import tritonclient.grpc as triton

from tests.calibration.bundles import export
from tests.fresh import run
from tests.map import sources
from tests.readme import ROOT
from tests.server.bundles import GOLDEN_X, MIXED, write_bundle

pytestmark = pytest.mark.slow

START_S = 60

PROJECT_TEST = """
import calibration, exporter, server
from demi.testing import assert_within_budget

def test_packages_and_bundle():
    assert ("my server", "my exporter", "my calibration") == (server.NAME, exporter.NAME, calibration.NAME)
    assert_within_budget("tiny")

def test_fixture(demi_check):
    demi_check("tiny")
"""


@pytest.fixture(scope="module")
def scripts(wheel, tmp_path_factory) -> Path:
    """The scripts of a fresh environment with the wheel and what it needs to serve on a CPU."""
    folder = tmp_path_factory.mktemp("fresh") / "venv"
    run(sys.executable, "-m", "venv", str(folder), cwd=folder.parent)
    install = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-c", str(ROOT / "constraints.txt"))
    run(str(folder / "bin/python"), *install, f"{wheel}[cpu,server]", cwd=folder.parent)
    return folder / "bin"


@pytest.fixture
def server(scripts, tmp_path) -> Iterator[tuple[subprocess.Popen[str], str, str]]:
    """`demi serve` from the fresh environment, and its addresses for HTTP and gRPC."""
    write_bundle(tmp_path / "models/mixed/1", MIXED, golden=GOLDEN_X)
    process = subprocess.Popen(
        [scripts / "demi", "serve", "models", "--port", "0"], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    timer = threading.Timer(START_S, process.kill)
    timer.start()
    try:
        assert process.stderr is not None
        said = []
        for line in process.stderr:
            said.append(line)
            if match := re.search(r"serving url=(\S+) grpc=(\S+)", line):
                timer.cancel()
                yield process, match[1], match[2]
                break
        else:
            pytest.fail("the server did not start:\n" + "".join(said))
    finally:
        timer.cancel()
        process.kill()
        process.wait()
        process.stderr.close()


def test_the_wheel_brings_one_name(wheel):
    """Every module below `demi` and nothing beside it, the console with its libraries, the licence and two scripts; no
    tests, no examples."""
    names = zipfile.ZipFile(wheel).namelist()
    modules = {path if path.startswith("demi/") else f"demi/{path}" for path in sources()}
    grpc = {f"demi/server/grpc/{name}" for name in ("protocol.binpb", "inference.proto", "health.proto")}
    console = ROOT / "server/http/console/static"
    page = {f"demi/server/http/console/static/{path.relative_to(console)}" for path in console.rglob("*.*")}
    typed = {f"demi/{folder}py.typed" for folder in ("", "exporter/", "calibration/", "server/", "training/")}

    assert {"demi"} == {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert modules == {name for name in names if name.endswith(".py")}
    assert grpc | typed | page <= set(names)
    assert {"index.html", "preact.js", "LICENSE-uplot.txt"} <= {path.rsplit("/", 1)[-1] for path in page}
    assert any(name.endswith("LICENSE") for name in names)


@pytest.mark.nightly
def test_serving_needs_neither_torch_nor_onnx(scripts, tmp_path):
    """The environment that serves holds neither of them."""
    for package in ("torch", "onnx", "onnx_ir", "onnxscript"):
        ended = run(str(scripts / "python"), "-c", f"import {package}", cwd=tmp_path, code=1)
        assert f"No module named '{package}'" in ended.stderr


@pytest.mark.nightly
def test_a_bundle_is_served(server):
    """It starts, answers over HTTP and gRPC, and ends with 0 on SIGTERM."""
    process, url, grpc = server
    body = {"inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}]}
    answer = httpx.post(f"{url}/v2/models/mixed/infer", json=body).raise_for_status().json()

    assert [2, 6, 12] == answer["outputs"][0]["data"]
    assert triton.InferenceServerClient(grpc).is_model_ready("mixed")
    process.send_signal(signal.SIGTERM)
    assert 0 == process.wait(20)


@pytest.mark.nightly
@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["export", "--help"], ["serve", "--help"]])
def test_help_works_with_any_set_of_extras(scripts, tmp_path, arguments):
    """The command line explains itself, whatever is installed."""
    ended = run(str(scripts / "demi"), *arguments, cwd=tmp_path)

    assert "demi" in ended.stdout


@pytest.mark.nightly
@pytest.mark.parametrize("script", [["demi", "export"], ["export"]])
def test_exporting_names_the_extra_that_is_missing(scripts, tmp_path, script):
    """Exit code 3 and the command to type; from the script named `export`, too."""
    ended = run(str(scripts / script[0]), *script[1:], "x.onnx", cwd=tmp_path, code=3)

    assert "hint: install it with: pip install 'demi-inference[export]'" in ended.stderr
    assert "Traceback" not in ended.stderr


class TestBesideAnotherProject:
    """Demi from its wheel, in a project that has packages of its own called `server`, `exporter` and `calibration`."""

    @pytest.fixture(scope="class")
    def python(self, wheel, tmp_path_factory) -> Path:
        """The interpreter of an environment with the wheel, which borrows other packages from this one."""
        folder = tmp_path_factory.mktemp("beside") / "venv"
        run(sys.executable, "-m", "venv", str(folder), cwd=folder.parent)
        python = folder / "bin/python"
        run(str(python), "-m", "pip", "install", "--quiet", "--no-deps", str(wheel), cwd=folder.parent)
        (site,) = folder.glob("lib/python*/site-packages")
        (site / "borrowed.pth").write_text(f"{sysconfig.get_path('purelib')}\n")  # whose own .pth files are not read
        return python

    @pytest.fixture
    def project(self, tmp_path) -> Path:
        """A project with those packages, a bundle, and a test that uses both."""
        for name in ("server", "exporter", "calibration"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "__init__.py").write_text(f"NAME = 'my {name}'\n")
        export(tmp_path)
        (tmp_path / "test_mine.py").write_text(PROJECT_TEST)
        return tmp_path

    def test_the_command(self, python, project):
        """`python -m demi check` runs in the project's folder, which comes first on Python's path."""
        assert "passed" in run(str(python), "-m", "demi", "check", "tiny", cwd=project).stdout

    def test_testing_and_the_fixture(self, python, project):
        """`demi.testing` and `demi_check` work, and the project's own packages are the project's."""
        assert "2 passed" in run(str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=project).stdout

    def test_where_demi_comes_from(self, python, project):
        """It is the wheel that was tried, not this checkout."""
        code = "import demi.server, server; print(demi.server.__file__, server.NAME)"
        said = run(str(python), "-c", code, cwd=project).stdout

        assert said.startswith(str(python.parent.parent))
        assert said.endswith("my server\n")


def test_mypy_follows_the_links(tmp_path):
    """A type error below `server/` fails `mypy -p demi`, which sees that folder through the link `demi/server`."""
    (tmp_path / "demi").mkdir()
    (tmp_path / "demi/__init__.py").write_text("")
    (tmp_path / "demi/server").symlink_to(Path("../server"))
    (tmp_path / "server").mkdir()
    (tmp_path / "server/__init__.py").write_text("number: int = 'three'\n")
    ended = run(sys.executable, "-m", "mypy", "--strict", "-p", "demi", cwd=tmp_path, code=1)

    assert "demi/server/__init__.py:1: error: Incompatible types" in ended.stdout


@pytest.mark.parametrize("folder", ["exporter", "calibration", "server", "training"])
def test_the_links_lead_to_the_folders(folder):
    """`demi/server` is the folder `server`, and so on: mypy and editors find every module."""
    link = ROOT / "demi" / folder

    assert link.is_symlink()
    assert (ROOT / folder) == link.resolve()
