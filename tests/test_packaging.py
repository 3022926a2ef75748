"""The wheel, in a fresh environment as a server has it: without PyTorch and onnx."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import tritonclient.grpc as triton

from tests.fresh import run
from tests.map import sources
from tests.readme import ROOT
from tests.server.bundles import GOLDEN_X, MIXED, write_bundle

pytestmark = pytest.mark.slow

START_S = 60


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
    """Every module below `demi` and nothing beside it, the licence and two scripts; no tests, no examples."""
    names = zipfile.ZipFile(wheel).namelist()
    modules = {path if path.startswith("demi/") else f"demi/{path}" for path in sources()}
    grpc = {f"demi/server/grpc/{name}" for name in ("protocol.binpb", "inference.proto", "health.proto")}
    typed = {f"demi/{folder}py.typed" for folder in ("", "exporter/", "calibration/", "server/")}

    assert {"demi"} == {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert modules == {name for name in names if name.endswith(".py")}
    assert grpc | typed <= set(names)
    assert any(name.endswith("LICENSE") for name in names)


def test_serving_needs_neither_torch_nor_onnx(scripts, tmp_path):
    """The environment that serves holds neither of them."""
    for package in ("torch", "onnx", "onnx_ir", "onnxscript"):
        ended = run(str(scripts / "python"), "-c", f"import {package}", cwd=tmp_path, code=1)
        assert f"No module named '{package}'" in ended.stderr


def test_a_bundle_is_served(server):
    """It starts, answers over HTTP and gRPC, and ends with 0 on SIGTERM."""
    process, url, grpc = server
    body = {"inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}]}
    answer = httpx.post(f"{url}/v2/models/mixed/infer", json=body).raise_for_status().json()

    assert [2, 6, 12] == answer["outputs"][0]["data"]
    assert triton.InferenceServerClient(grpc).is_model_ready("mixed")
    process.send_signal(signal.SIGTERM)
    assert 0 == process.wait(20)


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["export", "--help"], ["serve", "--help"]])
def test_help_works_with_any_set_of_extras(scripts, tmp_path, arguments):
    """The command line explains itself, quickly, whatever is installed."""
    started = time.monotonic()
    ended = run(str(scripts / "demi"), *arguments, cwd=tmp_path)

    assert "demi" in ended.stdout
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("script", [["demi", "export"], ["export"]])
def test_exporting_names_the_extra_that_is_missing(scripts, tmp_path, script):
    """Exit code 3 and the command to type; from the script named `export`, too."""
    ended = run(str(scripts / script[0]), *script[1:], "x.onnx", cwd=tmp_path, code=3)

    assert "hint: install it with: pip install 'demi-inference[export]'" in ended.stderr
    assert "Traceback" not in ended.stderr
