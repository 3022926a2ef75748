"""The server's image without a container engine: its own pip lines, its entry point, its health check.

The steps are read from the Dockerfile and run in a clean environment, as a user who owns nothing, on code that nobody may
write. What an engine adds (the base image, a mounted volume) is not tested here.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.deploy.dockerfile import ROOT, Image, image
from tests.fresh import plain_environ
from tests.server.bundles import GOLDEN_X, MIXED, write_bundle

pytestmark = [pytest.mark.slow, pytest.mark.nightly]

START_S = 60


@dataclass(frozen=True)
class Container:
    """A folder that stands for the root of the container, and what the image says."""

    root: Path
    image: Image

    def inside(self, text: str) -> str:
        """A word or a command with the container's paths as they are here."""
        for place in ("/opt/venv", "/models", "/dist"):
            text = text.replace(place, str(self.root) + place)
        return text

    @property
    def environ(self) -> dict[str, str]:
        """The image's variables, on ports of its own and on the loopback alone."""
        path = f"{self.root}/opt/venv/bin{os.pathsep}/usr/bin{os.pathsep}/bin"
        own = {"DEMI_HOST": "127.0.0.1", "DEMI_PORT": self.port, "DEMI_GRPC_PORT": "0"}
        return {**self.image.env, "PATH": path, **own}

    @property
    def port(self) -> str:
        return (self.root / "port").read_text()

    def command(self, *words: str) -> list[str]:
        """A command as the image's user runs it."""
        program = shutil.which(words[0], path=self.environ["PATH"])
        assert program, f"the image has no `{words[0]}`"
        return [*as_user(self.image.user), program, *map(self.inside, words[1:])]

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """A command in the container, to its end."""
        return subprocess.run(self.command(*words), env=self.environ, cwd="/", capture_output=True, text=True)


def as_user(user: str) -> list[str]:
    """Return the prefix that runs a command as that user; empty if the tests are not run by root.

    The user may read where only root may (this machine's Python can lie there), and write nowhere.
    """
    if os.geteuid() != 0:
        return []
    uid, gid = user.split(":")
    may_read = ("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search")
    return ["setpriv", "--reuid", uid, "--regid", gid, "--clear-groups", "--no-new-privs", *may_read]


@pytest.fixture(scope="module")
def container(wheel: Path) -> Iterator[Container]:
    """The image's files, installed by the Dockerfile's own lines, with one bundle as its volume, all of it read-only."""
    root = Path(tempfile.mkdtemp(prefix="demi-image-"))
    made = Container(root, image("server"))
    try:
        install(made, wheel)
        write_bundle(root / "models/mixed/1", MIXED, golden=GOLDEN_X)
        (root / "port").write_text(free_port())
        subprocess.run(["chmod", "-R", "a-w,a+rX", str(root)], check=True)
        yield made
    finally:
        subprocess.run(["chmod", "-R", "u+w", str(root)], check=True)
        shutil.rmtree(root)


def install(container: Container, wheel: Path) -> None:
    """Run every RUN line behind the one that builds the wheel, which is built already."""
    (container.root / "dist").mkdir()
    shutil.copy(wheel, container.root / "dist")
    builder = image("server-packages")
    assert builder.runs[0].startswith("pip wheel ")
    here = Path(sys.executable).parent
    environ = plain_environ() | {"PIP_QUIET": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    environ["PATH"] = f"{container.root}/opt/venv/bin{os.pathsep}{here}{os.pathsep}{environ['PATH']}"
    for line in builder.runs[1:]:
        subprocess.run(["sh", "-euc", container.inside(line)], cwd=ROOT, env=environ, check=True, timeout=600)


def free_port() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


@pytest.fixture
def server(container: Container) -> Iterator[subprocess.Popen[str]]:
    """`docker run IMAGE`, once it says that it serves."""
    command = container.command(*container.image.entrypoint, *container.image.command)
    process = subprocess.Popen(command, env=container.environ, cwd="/", stderr=subprocess.PIPE, text=True)
    timer = threading.Timer(START_S, process.kill)
    timer.start()
    try:
        assert process.stderr is not None
        said = []
        for line in process.stderr:
            said.append(line)
            if "serving url=" in line:
                break
        else:
            pytest.fail("the server did not start:\n" + "".join(said))
        yield process
    finally:
        timer.cancel()
        process.kill()
        process.wait()
        process.stderr.close()


def test_the_user_owns_and_writes_nothing(container):
    """The image's user is not root, and cannot write into the code or the models."""
    attempt = "import os, sys; print(os.geteuid()); [open(f'{place}/x', 'w') for place in sys.argv[1:]]"
    for place in ("/opt/venv/bin", "/models"):
        ended = container.run("python", "-c", attempt, place)

        assert "0" != ended.stdout.strip()
        assert 0 != ended.returncode
        assert "PermissionError" in ended.stderr


def test_the_image_serves_reports_health_and_drains(container, server):
    """It answers, the health check ends with 0, and SIGTERM ends the server with 0; then the check fails."""
    body = {"inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}]}
    url = f"http://127.0.0.1:{container.port}/v2/models/mixed/infer"
    answer = httpx.post(url, json=body).raise_for_status().json()

    assert [2, 6, 12] == answer["outputs"][0]["data"]
    assert 0 == container.run(*container.image.healthcheck).returncode
    server.send_signal(signal.Signals[container.image.stop_signal])
    assert 0 == server.wait(20)
    assert 0 != container.run(*container.image.healthcheck).returncode


def test_exporting_says_what_the_image_lacks(container):
    """`docker run IMAGE export --fp16 model.pt` reaches Demi, which names the extra that the server's image lacks."""
    ended = container.run(*container.image.entrypoint, "export", "--fp16", "model.pt")

    assert 3 == ended.returncode
    assert "demi-inference[export]" in ended.stderr


@pytest.mark.parametrize("package", ["torch", "onnx", "onnxscript", "transformers"])
def test_packages_for_exporting_are_absent(container, package):
    """The server's image has no PyTorch and no onnx."""
    ended = container.run("python", "-c", f"import {package}")

    assert f"No module named '{package}'" in ended.stderr
