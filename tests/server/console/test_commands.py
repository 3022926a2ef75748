"""Commands to copy: each is run as a person would run it, and answered."""

from __future__ import annotations

import os
import subprocess
import sys

import httpx
import pytest

from demi.server.http.console.commands import curl
from demi.server.models.model import Model
from demi.server.settings import ServeSettings
from tests.server.bundles import HALF, SCALE, SLOW, TYPES, write_bundle
from tests.server.console.bundles import TEXT
from tests.server.fakes import DoublingSession, loaded
from tests.server.processes import serving
from tests.server.test_keys import KEY, write_keys


def run(language: str, text: str, **environ: str) -> str:
    """Run a command as its language; return what it prints."""
    command = ["bash", "-c", text] if language == "sh" else [sys.executable, "-c", text]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env={**os.environ, **environ})
    assert 0 == done.returncode, f"{text}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    """Return the commands of each test model, from a running server."""
    folder = tmp_path_factory.mktemp("models")
    for name, text in {"scale": SCALE, "half": HALF, "types": TYPES, "slow": SLOW, "text": TEXT}.items():
        write_bundle(folder / name / "1", text)
    with serving(folder) as server, httpx.Client(base_url=server.url) as client:
        yield {
            name: {each["tool"]: each for each in client.get(f"/console/models/{name}/versions/1/commands").json()}
            for name in ("scale", "half", "types", "slow", "text")
        }


@pytest.mark.parametrize("tool", ["curl", "Python", "tritonclient"])
@pytest.mark.parametrize("model", ["scale", "half", "types", "slow", "text"])
def test_a_copied_command_is_answered(commands, model, tool):
    """Inputs of every datatype, and one that is too large to be written out: each command prints the outputs."""
    if (model, tool) == ("half", "curl"):
        pytest.skip("the same as scale")
    command = commands[model][tool]
    printed = run(command["language"], command["text"])

    assert "error" not in printed
    assert {"scale": "y", "half": "y", "types": "text_out", "slow": "y", "text": "same"}[model] in printed


def test_commands_with_a_key(tmp_path):
    """With API keys, every command takes the key from the shell's variable; the page shows none."""
    keys = write_keys(tmp_path / "keys", KEY)
    with serving(write_bundle(tmp_path / "b", SCALE), "--api-key-file", str(keys)) as server:
        answer = httpx.get(f"{server.url}/console/models/scale/versions/1/commands", headers={"x-api-key": KEY})
        printed = [run(each["language"], each["text"], DEMI_API_KEY=KEY) for each in answer.json()]

    assert KEY not in answer.text
    assert 3 == len(printed)
    assert all("y" in each and "error" not in each for each in printed)


def test_a_command_quotes_what_it_contains():
    """A name with the shell's own signs stays one word."""
    model = Model("m", "1", ServeSettings())
    session = DoublingSession()
    session.gate.set()
    model.start(loaded(session))
    text = curl(model, "http://host/$(touch x)'/")
    model.close()

    assert run("sh", text.replace("curl ", "printf '%s\\n' ", 1)).startswith("http://host/$(touch x)'/v2/models/m/")
