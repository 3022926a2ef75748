"""The Dockerfile: what the images hold, who they run as, and that every path and command it names exists."""

from __future__ import annotations

import re
import subprocess
import sysconfig
import tomllib
from pathlib import Path

import pytest

from demi.cli.commands import COMMANDS
from demi.server.settings import table
from demi.version import __version__
from tests.deploy.dockerfile import DOCKERFILE, ROOT, Image, image, steps
from tests.test_docs import flags_of

TARGETS = [("server", "cpu"), ("server", "gpu"), ("exporter", "cpu")]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def packages_of(target: str, device: str = "cpu", **arguments: str) -> set[str]:
    """The extras and packages that pip installs for a target."""
    found = image(f"{target}-packages", {"DEVICE": device} | arguments)
    (line,) = [run for run in found.runs if "pip install" in run]
    extras, rest = re.search(r'\[(.*)\]"(.*)', line).groups()  # type: ignore[union-attr]
    return {*extras.split(","), *rest.split()}


def made(target: str, device: str) -> Image:
    """The image of a target for a device."""
    return image(target, {"DEVICE": device})


def lint(text: str) -> list[str]:
    """Return hadolint's findings about a Dockerfile, one line each."""
    linter = Path(sysconfig.get_path("scripts")) / "hadolint"
    ended = subprocess.run([linter, "--no-color", "-"], input=text, capture_output=True, text=True)
    return ended.stdout.splitlines()


def missing_sources(text: str) -> list[str]:
    """Return paths that .dockerignore allows or COPY names, and that are not in the repository."""
    kept = [line.removeprefix("!") for line in text.splitlines() if line.startswith("!")]
    return [name for name in kept if not (ROOT / name).exists()]


def test_the_dockerfile_passes_the_linter():
    """hadolint has nothing to say."""
    assert [] == lint(DOCKERFILE.read_text())


def test_the_linter_finds_an_error():
    """An image without a version, and a shell-form entry point, are reported."""
    found = "\n".join(lint("FROM python\nENTRYPOINT demi serve\n"))

    assert "DL3006" in found
    assert "DL3025" in found


@pytest.mark.parametrize(("target", "device"), TARGETS)
def test_images_do_not_run_as_root(target, device):
    """Every image runs as user and group 10001."""
    assert "10001:10001" == made(target, device).user


@pytest.mark.parametrize(("target", "device"), TARGETS)
def test_arguments_reach_demi_as_they_are(target, device):
    """`docker run IMAGE export --fp16 model.pt` and `docker run IMAGE serve /models`: exec form, and Demi's own commands."""
    found = made(target, device)

    assert ["demi"] == found.entrypoint
    assert "demi" in PROJECT["scripts"]
    assert {"export", "serve"} <= set(COMMANDS)
    assert "--fp16" in flags_of("export")
    assert found.command[0] in COMMANDS


def test_the_server_has_neither_torch_nor_onnx():
    """It installs the extras that run and serve bundles, and nothing else."""
    assert {"cpu", "server", "otel"} == packages_of("server")
    assert {"gpu", "server", "otel"} == packages_of("server", "gpu")


def test_the_exporter_reads_every_source():
    """PyTorch files, ONNX, safetensors, and transformers' folders."""
    assert {"cpu", "export", "torch", "report", "safetensors", "transformers"} == packages_of("exporter")


@pytest.mark.parametrize(("target", "argument"), [("server", "SERVER_EXTRAS"), ("exporter", "EXPORTER_EXTRAS")])
def test_engines_are_built_and_served_in_containers(target, argument):
    """TensorRT comes into an image where its build arguments say so, in the words of the Dockerfile's own example."""
    (extras,) = re.findall(rf"--build-arg {argument}=(\S+)", DOCKERFILE.read_text())

    assert packages_of(target, "gpu") | {"tensorrt"} == packages_of(target, "gpu", **{argument: extras})


@pytest.mark.parametrize("target", ["server", "exporter"])
def test_installed_packages_are_pinned_and_known(target):
    """Every extra is one of pyproject.toml's, and versions come from constraints.txt."""
    extras = packages_of(target) - {"safetensors", "transformers"}

    assert extras <= set(PROJECT["optional-dependencies"])
    assert all(
        "--constraint constraints.txt" in run for run in image(f"{target}-packages").runs if run.startswith("pip ")
    )


def test_an_image_for_a_gpu_serves_on_it():
    """The device follows from the build argument; an unknown one has no stage, and fails the build."""
    assert "cpu" == made("server", "cpu").env["DEMI_DEVICE"]
    assert "cuda" == made("server", "gpu").env["DEMI_DEVICE"]
    with pytest.raises(KeyError):
        made("server", "tpu")


def test_variables_are_settings_of_the_server():
    """Every DEMI_ variable that is set is one that `demi serve` reads."""
    known = {row.variable for row in table().values()}
    found = {name for name in made("server", "cpu").env if name.startswith("DEMI_")}

    assert {"DEMI_HOST", "DEMI_PORT", "DEMI_DEVICE"} == found
    assert found <= known


def test_the_server_can_be_watched_and_stopped():
    """It listens on 8000 and 8001, is asked whether it is ready, and is stopped by the signal it drains on."""
    found = made("server", "cpu")

    assert [8000, 8001] == found.ports
    assert "/v2/health/ready" in found.healthcheck[-1]
    assert "8000" == found.env["DEMI_PORT"]
    assert "SIGTERM" == found.stop_signal
    assert ["/models"] == found.volumes
    assert ["serve", "/models"] == found.command


def test_the_server_is_what_a_plain_build_makes():
    """`docker build .` builds the last stage."""
    last = [step.value for step in steps() if step.instruction == "FROM"][-1]

    assert last.endswith(" AS server")


def test_nothing_but_the_environment_is_copied():
    """The final stages take the installed packages, and no source or build tool."""
    assert [["--from=server-packages", "/opt/venv", "/opt/venv"]] == image("server").copies
    assert [["--from=exporter-packages", "/opt/venv", "/opt/venv"]] == image("exporter").copies
    assert [] == image("server").runs + image("exporter").runs


def test_the_builder_sees_what_the_wheel_needs():
    """.dockerignore keeps everything out but the packages and what pyproject.toml reads; all of it exists."""
    text = (ROOT / ".dockerignore").read_text()
    kept = {line.removeprefix("!") for line in text.splitlines() if line.startswith("!")}

    assert {"pyproject.toml", "README.md", "LICENSE", "constraints.txt"} <= kept
    assert set(folders()) <= kept
    assert [] == missing_sources(text)
    assert ["nothing"] == missing_sources("*\n!demi\n!nothing\n")


def folders() -> list[str]:
    """The folders that setuptools takes packages from, as pyproject.toml names them."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    return sorted(settings["package-dir"].values())


def test_versions_agree():
    """The label says the version of the project."""
    arguments = [step.value for step in steps() if step.instruction == "ARG"]

    assert f"VERSION={__version__}" in arguments
