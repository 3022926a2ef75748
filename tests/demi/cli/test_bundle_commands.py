"""`demi list`, `demi inspect` and `demi run`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from demi.accuracy.budget import Budget, Limits
from demi.cli.bundle_facts import BundleFacts
from demi.cli.list_bundles import _on_this_machine
from tests.calibration.bundles import X, export, reseal

GRAPH = "m (float[n, 4] x) => (float[n, 4] y, float[n, 4] z) { y = Mul(x, x) z = Relu(x) }"
SINGLE = "s (float[n, 4] x) => (float[n, 4] y) { y = Relu(x) }"


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A folder with version 1 of a model with two outputs, and of one with a single output."""
    folder = tmp_path_factory.mktemp("models")
    export(folder, GRAPH, name="two")
    export(folder, SINGLE, name="one")
    return folder


@pytest.fixture
def models(exported, tmp_path):
    """A copy of that folder, named `models`, in the working folder."""
    return shutil.copytree(exported, tmp_path / "models")


class TestList:
    """`demi list`."""

    def test_a_line_for_each_version(self, demi, models):
        """Every version with its precision, batching, largest error and budget."""
        shutil.copytree(models / "two" / "1", models / "two" / "2")
        code, out, err = demi("list", models)
        lines = [line.split() for line in out.splitlines() if line.lstrip().startswith(("one", "two"))]

        assert (0, "") == (code, err)
        assert ["one", "two", "two"] == [line[0] for line in lines]
        assert {"fp16"} == {line[2] for line in lines}
        assert "(y)" in lines[1]
        assert out.count("up to 32") == out.count("relative_l2 <= 0.01") == 3

    def test_without_a_folder(self, demi, models):
        """The default is `models`, as for `demi export`; nothing there is an error with a hint."""
        assert 0 == demi("list")[0]
        shutil.rmtree(models)
        code, out, err = demi("list")

        assert (2, "") == (code, out)
        assert "no such folder" in err
        assert "demi export" in err

    def test_a_damaged_bundle(self, demi, models):
        """It is listed with its problem, and hides no other bundle."""
        (models / "one" / "1" / "manifest.json").write_text("{")
        code, out, _ = demi("list", models)

        assert 0 == code
        assert "cannot be opened: the manifest is not valid JSON" in out
        assert "(y)" in out

    def test_json(self, demi, models):
        """One object for each bundle, with the measured error of every output."""
        found = json.loads(demi("list", models, "--json")[1])

        assert ["one", "two"] == [each["name"] for each in found]
        assert [["y"], ["y", "z"]] == [[output["output"] for output in each["outputs"]] for each in found]
        assert {None} == {each["engine"] for each in found}

    def test_rules_of_versions(self, demi, models):
        """Which version answers which requests, and under which other names; without rules there is no column."""
        shutil.copytree(models / "two" / "1", models / "two" / "2")
        assert "requests" not in demi("list", models)[1]
        demi("canary", models / "two", "2", "--percent", "10", "--header", "x-canary")
        demi("versions", models / "two", "--alias", "blue=1")
        found = [each["requests"] for each in json.loads(demi("list", models, "--json")[1])]
        out = demi("list", models)[1]

        assert [None, (90, ["stable", "blue"], ""), (10, ["canary"], "x-canary")] == [
            each and (each["percent"], each["aliases"], each["header"]) for each in found
        ]
        assert "90% (stable, blue)" in out
        assert "10%, and those with x-canary (canary)" in out

    def test_rules_that_cannot_be_read(self, demi, models):
        """The versions are listed with the reason."""
        (models / "two" / "versions.json").write_text("{")

        assert "the rules cannot be read: " in demi("list", models)[1]

    def test_leftovers_of_a_crash(self, demi, models):
        """Drafts of crashed exports are named, also where there is no bundle yet."""
        (models / "new").mkdir()
        (models / "new" / ".1-abc.partial").mkdir()
        (models / "two" / ".2-abc.partial").mkdir()
        err = demi("list", models)[2]

        assert 2 == err.count("left by an export that crashed")
        assert str(models / "new" / ".1-abc.partial") in err

    def test_an_engine_of_another_machine(self, demi, models):
        """An engine without this machine's seal is reported as such, not as usable."""
        (models / "one" / "1" / "engine").mkdir()
        (models / "one" / "1" / "engine" / "engine.json").write_text("{}")

        assert "engine.json" in demi("list", models)[1]


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({}, ""),
        ({"proof": "verdict", "speedup": 1.9}, "bf16 runs at 1.90x FP32's speed on this CPU"),
        ({"proof": "verdict"}, "bf16 failed its proof on this CPU"),
        (
            {"engine": "TensorRT 10", "proof": "v", "speedup": 0.5},
            "TensorRT 10; bf16 runs at 0.50x FP32's speed on this CPU",
        ),
    ],
)
def test_what_this_machine_proved(facts, words):
    """The list shows the engine and the speed of half in short."""
    assert words == _on_this_machine(BundleFacts(Path("m/1"), "m", "1", **facts), "bf16")


class TestInspect:
    """`demi inspect`."""

    def test_what_is_shown(self, demi, models):
        """Inputs with their ranges, outputs with error and budget, the plan, the origin, every file."""
        code, out, _ = demi("inspect", models / "two")

        assert 0 == code
        for words in (
            "two v1",
            "mixed fp16",
            f"{X.min():.3g} to {X.max():.3g}",
            "relative_l2 <= 0.01",
            "nodes in fp16",
            "made from",
            "two.onnx",
            "reference.onnx",
            "up to 32 rows",
        ):
            assert words in out

    def test_damaged_file(self, demi, models):
        """Digests are checked: a damaged file is an error that names it."""
        with (models / "two" / "1" / "model.onnx").open("ab") as file:
            file.write(b"x")
        code, out, err = demi("inspect", models / "two")

        assert (2, "") == (code, out)
        assert "`model.onnx` is not the file that was written" in err

    def test_json(self, demi, models):
        """The manifest as it is, and counts of the plan."""
        document = json.loads(demi("inspect", models / "two", "--json")[1])

        assert "two" == document["manifest"]["name"]
        assert 2 == sum(row["count"] for row in document["plan"])

    def test_several_models(self, demi, models):
        """A folder of several models is an error that lists them."""
        code, _, err = demi("inspect", models)

        assert 2 == code
        assert f"choose one: {models / 'one'}, {models / 'two'}" in err


class TestRun:
    """`demi run`."""

    def test_inputs_from_a_file(self, demi, models, tmp_path):
        """Shapes and first values are printed, and `-o` writes the outputs by name."""
        np.savez(tmp_path / "a.npz", x=np.float32([[1, -2, 3, -4]]))
        code, out, _ = demi("run", models / "one", "--input", "a.npz", "-o", "out.npz")

        assert 0 == code
        assert "[1, 4]" in out
        assert "1, 0, 3, 0" in out
        assert [[1, 0, 3, 0]] == np.load(tmp_path / "out.npz")["y"].tolist()

    def test_several_sets(self, demi, models, tmp_path):
        """A folder of inputs is several runs; the outputs are numbered."""
        for index in range(2):
            (tmp_path / "sets").mkdir(exist_ok=True)
            np.savez(tmp_path / "sets" / f"{index}.npz", x=np.full((1, 4), index, np.float32))
        out = demi("run", models / "one", "--input", "sets", "-o", "out.npz")[1]

        assert "inputs 2 of 2" in out
        assert ["000/y", "001/y"] == np.load(tmp_path / "out.npz").files

    @pytest.mark.parametrize(("precision", "expected"), [("half", "fp16-in-fp32"), ("auto", "fp32")])
    def test_half_by_hand(self, demi, models, precision, expected):
        """Without half kernels FP32 runs on a CPU, unless half is asked for."""
        arguments = ("--golden", "--json", "--runtime", "onnxruntime", "--precision", precision)
        document = json.loads(demi("run", models / "one", *arguments)[1])

        assert expected == document["precision"]

    def test_golden(self, demi, models):
        """Golden inputs are run and compared with FP32: within the budget is exit code 0."""
        code, out, _ = demi("run", models / "two", "--golden")

        assert 0 == code
        assert 2 == out.count("within")

    def test_golden_over_budget(self, demi, tmp_path):
        """Answers beyond the budget are exit code 1, and a message names the output."""
        export(tmp_path, SINGLE, name="one")
        golden = tmp_path / "one" / "1" / "golden.npz"
        arrays = dict(np.load(golden))
        np.savez(golden, **arrays | {"000/out/y": arrays["000/out/y"] * 2})
        reseal(golden.parent)
        code, out, err = demi("run", tmp_path / "one", "--golden")

        assert 1 == code
        assert "OVER" in out
        assert "over budget: `y`: relative_l2 is 0.5" in err

    def test_json(self, demi, models):
        """The JSON holds types, shapes and the comparison."""
        document = json.loads(demi("run", models / "one", "--golden", "--json")[1])

        assert document["within_budget"]
        assert [6, 4] == document["outputs"][0][0]["shape"]

    def test_input_that_does_not_fit(self, demi, models, tmp_path):
        """A wrong shape is an error that names the input."""
        np.savez(tmp_path / "a.npz", x=np.zeros((1, 5), np.float32))
        code, _, err = demi("run", models / "one", "--input", "a.npz")

        assert 2 == code
        assert "input `x` has shape [1, 5]" in err

    def test_one_source_of_inputs(self, demi, models):
        """One of `--input`, `--golden`, `--text`, `--image` and `--audio` is needed, and not two."""
        assert "--input --golden --text --image --audio is required" in demi("run", models / "one")[2]
        assert "not allowed with" in demi("run", models / "one", "--golden", "--input", "a.npz")[2]


def test_budget_of_a_single_output(demi, tmp_path):
    """The list shows the budget of the output whose error is largest."""
    limits = Budget(outputs={"y": Limits(relative_l2=0.5)})
    export(tmp_path, GRAPH, name="two", budget=limits)

    assert "relative_l2 <= 0.5" in demi("list", tmp_path / "two")[1]
