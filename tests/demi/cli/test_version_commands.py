"""`demi versions`, `demi canary`, `demi promote` and `demi rollback`, on a folder and on a running server."""

from __future__ import annotations

import json

import httpx
import pytest

from demi.bundles.traffic import FILE, Canary, Header, Traffic, read_traffic
from tests.demi.bundles.making import make_bundle
from tests.server.bundles import SCALE, write_bundle
from tests.server.http.test_infer import ROW
from tests.server.processes import serving

KEY = "a-key-that-nobody-can-guess"


@pytest.fixture
def model(tmp_path):
    """Return the folder of a model with three versions."""
    for version in (1, 2, 3):
        make_bundle(tmp_path / "models" / "m", version)
    return tmp_path / "models" / "m"


class TestFolder:
    """Without a server."""

    def test_a_release(self, demi, model):
        """A canary, its promotion and a rollback: each prints the rules, and writes them."""
        printed = [
            demi("canary", model, "--percent", "25%")[1],
            demi("promote", model)[1],
            demi("rollback", model)[1],
        ]

        assert "m: version 2 answers; version 3 gets 25% of the requests" in printed[0]
        assert "m: version 3 answers" in printed[1]
        assert "m: version 2 answers" in printed[2]
        assert Traffic(stable=2) == read_traffic(model)

    def test_a_bad_newest_version_is_left_with_one_command(self, demi, model):
        """No rules are needed before."""
        assert 0 == demi("rollback", model)[0]
        assert Traffic(stable=2) == read_traffic(model)

    def test_versions_and_aliases(self, demi, model):
        """Every version is listed with its names and share."""
        assert "the newest version answers (3)" in demi("versions", model)[1]
        demi("canary", model, "3", "--percent", "5", "--header", "X-Canary=yes")
        code, out, _ = demi("versions", model, "--alias", "old=1", "--json")
        found = json.loads(out)

        assert (0, "2", {"version": "3", "percent": 5, "header": "x-canary=yes"}) == (
            code,
            found["answering"],
            found["canary"],
        )
        assert [("1", ["old"], 0), ("2", ["stable"], 95), ("3", ["canary"], 5)] == [
            (each["version"], each["aliases"], each["percent"]) for each in found["versions"]
        ]
        assert Traffic(2, Canary(3, 5, Header("x-canary", "yes")), {"old": 1}) == read_traffic(model)
        assert 0 == demi("promote", model, "old")[0]
        assert 1 == read_traffic(model).stable

    def test_a_folder_with_a_single_model(self, demi, model):
        """The parent folder is enough, as for other commands."""
        assert "version 1 answers" in demi("promote", model.parent, "1")[1]
        assert "the newest version answers" in demi("promote", model.parent, "newest")[1]

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["promote", "models/m"], "no canary to promote"),
            (["promote", "models/m", "7"], "no version `7`"),
            (["promote", "models/m/1", "1"], "folder of one version"),
            (["promote", "nowhere", "1"], "no model with versions here"),
            (["canary", "models/m", "--percent", "101"], "not a share"),
            (["canary", "models/m", "--header", "a b"], "not a header"),
            (["versions", "models/m", "--alias", "blue"], "has no `=`"),
            (["versions", "models/m", "--alias", "canary=1"], "cannot be set as an alias"),
            (["versions", "models/m", "--alias", "blue=x"], "no version `x`"),
            (["versions", "m", "--server", "localhost:8000"], "not the address of a server"),
            (["versions", "m", "--server", "http://localhost:1"], "does not answer"),
        ],
    )
    def test_mistakes(self, demi, model, arguments, words):
        """Each ends with 2 and a reason, and writes nothing."""
        try:
            code, out, err = demi(*arguments)
        except SystemExit as stopped:  # argparse
            code, out, err = stopped.code, "", words

        assert (2, "") == (code, out)
        assert words in err
        assert not (model / FILE).exists()

    def test_several_models(self, demi, model):
        """The error lists them."""
        make_bundle(model.parent / "other", 1)

        assert "choose one: " in demi("rollback", model.parent)[2]

    def test_inputs_that_differ(self, demi, tmp_path):
        """A canary that clients of the stable version could not call is refused."""
        write_bundle(tmp_path / "scale" / "1", SCALE)
        write_bundle(tmp_path / "scale" / "2", SCALE.replace("float[batch, 3] x", "float[batch, 1] x"), version=2)

        code, _, err = demi("canary", tmp_path / "scale")

        assert 2 == code
        assert "versions 1 and 2 cannot share traffic: input `x`" in err


def test_on_a_running_server(demi, tmp_path):
    """With its address and a key; the server saves what it is told, and shows requests and times of both sides."""
    for version in (1, 2):
        write_bundle(tmp_path / "models" / "scale" / str(version), SCALE, version=version)
    keys = tmp_path / "keys"
    keys.write_text(f"# a comment\n{KEY}\n")
    keys.chmod(0o600)
    with serving(tmp_path / "models", "--allow-model-control", "--api-key-file", str(keys)) as server:
        place = ("models/scale", "--server", server.url, "--api-key-file", keys)
        begun = demi("canary", *place, "--percent", "100")
        for _ in range(3):
            httpx.post(
                f"{server.url}/v2/models/scale/infer", content=ROW, headers={"x-api-key": KEY}
            ).raise_for_status()
        shown = demi("versions", *place)
        aliased = json.loads(demi("versions", *place, "--alias", "blue=1", "--json")[1])
        back = demi("rollback", *place)
        unknown = demi("rollback", "nope", *place[1:])
        refused = demi("rollback", *place[:3])

    assert (0, "") == (begun[0], begun[2])
    assert "version 1 answers; version 2 gets 100% of the requests" in begun[1]
    row = next(line.split() for line in shown[1].splitlines() if line.lstrip().startswith("2"))
    assert ["2", "canary", "100%", "READY", "3", "0"] == row[:6]
    assert {"blue": "1"} == aliased["aliases"]
    assert "version 1 answers" in back[1]
    assert Traffic(stable=1, aliases={"blue": 1}) == read_traffic(tmp_path / "models" / "scale")
    assert (2, 2) == (unknown[0], refused[0])
    assert "unknown model `nope`" in unknown[2]
    assert "API key" in refused[2]
