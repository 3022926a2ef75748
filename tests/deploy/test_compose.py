"""compose.yaml: valid, its paths exist, and its services find each other."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from demi.server.settings import ServeSettings
from tests.deploy.dockerfile import ROOT, image

FILES = [ROOT / "compose.yaml", ROOT / "compose.gpu.yaml"]
COMPOSE: dict[str, Any] = yaml.safe_load(FILES[0].read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]


def invalid(*files: Path) -> str:
    """Return the errors of these files against the Compose specification's schema."""
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", *map(str, files)]
    ended = subprocess.run(command, capture_output=True, text=True)
    return ended.stdout if ended.returncode else ""


def mounts(service: str) -> dict[str, str]:
    """Return paths in the container with the paths of this repository mounted there."""
    found = {}
    for entry in SERVICES[service]["volumes"]:
        source, target = re.sub(r"\$\{\w+:-(.*?)\}", r"\1", entry).split(":")[:2]
        found[target] = source
    return found


def missing_mounts(service: str) -> list[str]:
    """Files and folders that a service mounts and that are neither in the repository nor a volume."""
    return [
        source
        for source in mounts(service).values()
        if source not in COMPOSE["volumes"] and source != "./models" and not (ROOT / source).exists()
    ]


def seconds(text: str) -> float:
    """A duration of compose files in seconds."""
    return float(text.removesuffix("s"))


def test_the_files_are_valid(tmp_path):
    """The files follow the Compose specification; a file with an unknown key does not."""
    wrong = tmp_path / "compose.yaml"
    wrong.write_text("services: {demi: {image: demi, healthchek: {}}}\n")

    assert "" == invalid(*FILES)
    assert "healthchek" in invalid(wrong)


@pytest.mark.parametrize("service", sorted(SERVICES))
def test_mounted_paths_exist(service):
    """Every file that a container sees is in the repository."""
    assert [] == missing_mounts(service)


def test_the_server_is_built_here():
    """Its target is a stage of the Dockerfile, its arguments are the Dockerfile's, and its command Demi's."""
    build = SERVICES["demi"]["build"]

    assert image(build["target"], build["args"]).healthcheck
    assert "/models" in mounts("demi")
    assert ["serve", "/models"] == SERVICES["demi"]["command"]


def test_the_second_file_only_adds_a_gpu():
    """It changes the build argument, to one that has a stage, and reserves a device."""
    (added,) = yaml.safe_load(FILES[1].read_text())["services"].items()

    assert "demi" == added[0]
    assert "cuda" == image("server", added[1]["build"]["args"]).env["DEMI_DEVICE"]
    assert ["gpu"] == added[1]["deploy"]["resources"]["reservations"]["devices"][0]["capabilities"]


def test_the_server_may_write_nothing():
    """Its root file system and its bundles are read-only, and it has no privileges to lose."""
    demi = SERVICES["demi"]

    assert demi["read_only"]
    assert all(entry.endswith(":ro") for entry in demi["volumes"])
    assert ["ALL"] == demi["cap_drop"]


@pytest.mark.parametrize("service", sorted(SERVICES))
def test_no_service_takes_the_whole_machine(service):
    """Each has a bound on its memory and its processes, and cannot gain privileges."""
    memory = re.fullmatch(r"(?:\$\{MEMORY:-)?(\d+)g\}?", SERVICES[service]["mem_limit"])

    assert memory
    assert 1 <= int(memory[1]) <= 4
    assert 0 < SERVICES[service]["pids_limit"] <= 1024
    assert ["no-new-privileges:true"] == SERVICES[service]["security_opt"]


def test_the_server_has_time_to_drain():
    """Compose waits longer for the server than the server for its requests."""
    assert seconds(SERVICES["demi"]["stop_grace_period"]) > ServeSettings().drain_s


@pytest.mark.parametrize("service", sorted(SERVICES))
def test_nothing_is_open_to_the_network(service):
    """Ports are published on this machine alone."""
    assert all(entry.startswith("127.0.0.1:") for entry in SERVICES[service]["ports"])


def test_the_published_ports_are_the_ones_served():
    """8000 and 8001 are what the image exposes."""
    published = [int(entry.rsplit(":", 1)[1]) for entry in SERVICES["demi"]["ports"]]

    assert published == image("server").ports


def test_prometheus_asks_the_server():
    """Its target is the server's name and port, and the rules it reads are mounted beside its configuration."""
    places = mounts("prometheus")
    config = yaml.safe_load((ROOT / places["/etc/prometheus/prometheus.yml"]).read_text())
    targets = [
        target for job in config["scrape_configs"] for entry in job["static_configs"] for target in entry["targets"]
    ]

    assert ["demi:8000"] == targets
    assert all(f"/etc/prometheus/{name}" in places for name in config["rule_files"])


def test_grafana_finds_what_is_provisioned():
    """The source of data is Prometheus' service, and the folder of dashboards is mounted where the provider looks."""
    places = mounts("grafana")
    provisioning = ROOT / places["/etc/grafana/provisioning"]
    (source,) = yaml.safe_load((provisioning / "datasources/prometheus.yml").read_text())["datasources"]
    (provider,) = yaml.safe_load((provisioning / "dashboards/demi.yml").read_text())["providers"]
    home = SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    folder = provider["options"]["path"]

    assert "http://prometheus:9090" == source["url"]
    assert "127.0.0.1:9090:9090" in SERVICES["prometheus"]["ports"]
    assert (ROOT / places[folder] / home.removeprefix(f"{folder}/")).is_file()
