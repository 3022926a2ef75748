"""action.yml: valid, its scripts are sound and do what they say, and nothing an input holds becomes code."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from demi.cli.main import build_parser
from tests.calibration.bundles import X, edit_model, export, scale_weight
from tests.models import MLP, parse, text
from tests.readme import ROOT
from tests.test_docs import flags_of

ACTION: dict[str, Any] = yaml.safe_load((ROOT / "action.yml").read_text())
SCRIPTS = {step["name"]: step for step in ACTION["runs"]["steps"] if "run" in step}
CI = (ROOT / "docs" / "ci.md").read_text()


def resolved(value: str, inputs: dict[str, str], report: Path) -> str:
    """A value with GitHub's expressions filled in."""
    known = {f"inputs.{name}": spec.get("default", "") for name, spec in ACTION["inputs"].items()}
    known |= {f"inputs.{name}": given for name, given in inputs.items()}
    known |= {"github.action_path": str(ROOT), "steps.place.outputs.report": str(report)}
    return re.sub(r"\$\{\{ *([\w.-]+) *\}\}", lambda found: known[found[1]], value)


def validate(kind: str, path: Path) -> subprocess.CompletedProcess[str]:
    """A file against the schema that GitHub or GitLab publish, which the linter carries with it."""
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", kind, str(path)]
    return subprocess.run(command, capture_output=True, text=True)


class TestForm:
    """Properties of the action that need no run."""

    def test_schema(self, tmp_path):
        """GitHub's schema for actions passes it, and would not pass anything."""
        assert 0 == validate("vendor.github-actions", ROOT / "action.yml").returncode

        (tmp_path / "action.yml").write_text((ROOT / "action.yml").read_text().replace("shell: bash", "shel: bash"))
        assert 1 == validate("vendor.github-actions", tmp_path / "action.yml").returncode

    def test_actions_are_pinned(self):
        """Other people's actions are named by their commit, with the version beside it: a tag can be moved."""
        used = re.findall(r"uses: (actions/[^\n]*)", (ROOT / "action.yml").read_text() + CI)

        assert len(used) >= 3
        assert all(re.fullmatch(r"actions/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", line) for line in used)

    @pytest.mark.parametrize("name", SCRIPTS)
    def test_scripts(self, name):
        """Bash understands it, it stops at the first failure, and every flag of `demi` exists."""
        script = SCRIPTS[name]["run"]

        assert 0 == subprocess.run(["bash", "-n"], input=script, text=True).returncode
        assert script.startswith(("set -euo pipefail\n", "set -euf -o pipefail\n"))
        for command, words in re.findall(r"demi (\w+)([^\n]*)", script):
            assert set(re.findall(r"--[a-z-]+", words)) <= flags_of(command)
        assert set(re.findall(r"command\+=\((--[a-z-]+)", script)) <= flags_of("check") | flags_of("export")

    @pytest.mark.parametrize("name", SCRIPTS)
    def test_inputs_come_as_variables(self, name):
        """No expression stands in a script, where its value would be code; every variable is used."""
        script = SCRIPTS[name]["run"]

        assert "${{" not in script
        assert [] == [
            variable for variable in SCRIPTS[name].get("env", {}) if f"${variable}" not in script.replace("{", "")
        ]

    def test_inputs(self):
        """Every input is used, and every one that is used is declared and described."""
        used = set(re.findall(r"inputs\.([\w-]+)", (ROOT / "action.yml").read_text()))

        assert used == set(ACTION["inputs"])
        assert all(spec["description"] for spec in ACTION["inputs"].values())

    def test_extras(self):
        """The extras that are installed exist, and bring what the commands need."""
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]

        assert {"cpu", "export"} <= set(ACTION["inputs"]["extras"]["default"].split(",")) <= set(extras)

    def test_choices(self):
        """`on-plan-change` has the choices of the command."""
        (commands,) = (action.choices for action in build_parser()._actions if action.dest == "command")
        (choices,) = (a.choices for a in commands["check"]._actions if a.dest == "on_plan_change")

        assert ACTION["inputs"]["on-plan-change"]["default"] in choices
        assert all(choice in ACTION["inputs"]["on-plan-change"]["description"] for choice in choices)


@pytest.fixture
def job(tmp_path):
    """Runs a step's script as GitHub does, in a checkout of its own."""
    scripts = tmp_path / "scripts"
    scripts.mkdir()
    (scripts / "demi").write_text(f'#!/bin/sh\nexec {sys.executable} -m demi "$@"\n')
    (scripts / "demi").chmod(0o755)
    report = tmp_path / "report"
    report.mkdir()

    def run(name: str, **inputs: str) -> subprocess.CompletedProcess[str]:
        step = SCRIPTS[name]
        given = {key.replace("_", "-"): value for key, value in inputs.items()}
        env = {key: resolved(value, given, report) for key, value in step.get("env", {}).items()}
        github = {"GITHUB_OUTPUT": str(tmp_path / "outputs"), "GITHUB_STEP_SUMMARY": str(tmp_path / "summary.md")}
        path = {"PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
        return subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]],
            cwd=tmp_path,
            env=os.environ | path | github | {"RUNNER_TEMP": str(tmp_path)} | env,
            capture_output=True,
            text=True,
        )

    return run


class TestRun:
    """Its steps, run."""

    def test_export_check_and_report(self, job, tmp_path):
        """A model is exported and checked; the summary and the report are there."""
        (tmp_path / "tiny.onnx").write_bytes(text(parse(MLP)))
        export_args = "--no-calibrate --seed 3"
        exported = job(
            "Export", model="tiny.onnx", bundle="models/tiny", budget="cosine=0.9 y:top1=0", export_args=export_args
        )
        checked = job("Check", bundle="models/tiny")
        gathered = job("Gather the report", bundle="models/tiny")

        assert [0, 0, 0] == [ended.returncode for ended in (exported, checked, gathered)], (
            exported.stderr + checked.stderr
        )
        assert "### `tiny` v1 (fp16): passed" in (tmp_path / "summary.md").read_text()
        assert {"demi.md", "demi.xml", "plan.json", "accuracy.json"} <= {
            path.name for path in (tmp_path / "report").iterdir()
        }

    def test_an_export_that_fails(self, job, tmp_path):
        """The command's own exit code, and why in the summary."""
        (tmp_path / "tiny.onnx").write_bytes(text(parse(MLP)))
        ended = job("Export", model="tiny.onnx", budget="relative_l2=1e-9", export_args="--no-calibrate")

        assert 1 == ended.returncode
        assert "### The export failed\n\n    " in (tmp_path / "summary.md").read_text()
        assert "not within its accuracy budget" in (tmp_path / "summary.md").read_text()

    def test_a_bundle_that_got_worse(self, job, tmp_path):
        """The step fails, and the report is written all the same."""
        bundle = export(tmp_path)
        edit_model(bundle, scale_weight("w1_fp16", 50))
        ended = job("Check", bundle=str(bundle), check_args="--seed 1")

        assert 1 == ended.returncode
        assert "over budget: tiny v1: `y`: relative_l2 is" in ended.stderr
        assert "**FAILED**" in (tmp_path / "report" / "demi.md").read_text()

    def test_every_input_reaches_the_command(self, job, tmp_path):
        """With data, labels, metric, limit and baseline."""
        bundle = export(tmp_path)
        np.savez(tmp_path / "my data.npz", x=X, labels=np.zeros(6, int))
        data = {"data": "my data.npz", "labels": "labels", "metric": "top1", "max_loss": "0.5"}
        write = job("Check", bundle=str(bundle), **data, baseline="b.json", check_args="--write-baseline")
        again = job("Check", bundle=str(bundle), **data, baseline="b.json", on_plan_change="fail", budget="cosine=0.9")

        assert [0, 0] == [write.returncode, again.returncode], write.stderr + again.stderr
        assert "compared with the baseline" in again.stdout

    def test_an_input_is_no_code(self, job, tmp_path):
        """Quotes, dollars and stars in an input stay what they are."""
        ended = job("Check", bundle='"; touch hacked; $(touch hacked) *', check_args="*")

        assert ended.returncode
        assert not (tmp_path / "hacked").exists()

    def test_room_for_the_report(self, job, tmp_path):
        """The report has its own folder, which later steps know."""
        assert 0 == job("Make room for the report").returncode
        assert Path((tmp_path / "outputs").read_text().removeprefix("report=").strip()).is_dir()


class TestDocumented:
    """docs/ci.md."""

    @staticmethod
    def blocks(kind):
        return re.findall(rf"^```{kind}\n(.*?)^```", CI, re.MULTILINE | re.DOTALL)

    def test_the_workflow(self, tmp_path):
        """It is a workflow by GitHub's schema, and gives the action inputs that it has."""
        (block,) = (block for block in self.blocks("yaml") if "jobs:" in block)
        (tmp_path / "ci.yml").write_text(block)
        assert 0 == validate("vendor.github-workflows", tmp_path / "ci.yml").returncode

        (steps,) = (job["steps"] for job in yaml.safe_load(block)["jobs"].values())
        (used,) = (step["with"] for step in steps if "demi" in step.get("uses", ""))
        assert set(used) <= set(ACTION["inputs"])

    def test_the_gitlab_job(self, tmp_path):
        """It is a job by GitLab's schema, and its commands of `demi` are understood."""
        (block,) = (block for block in self.blocks("yaml") if "script:" in block)
        (tmp_path / "gitlab.yml").write_text(block)
        assert 0 == validate("vendor.gitlab-ci", tmp_path / "gitlab.yml").returncode

        lines = [line for job in yaml.safe_load(block).values() for line in job["script"] if line.startswith("demi ")]
        assert lines
        assert [] == [line for line in lines if not set(re.findall(r"--[a-z0-9-]+", line)) <= flags_of(line.split()[1])]

    def test_every_input_is_described(self):
        """The page's table has a row for each input of the action."""
        table = CI.partition("| input | meaning | default |")[2].partition("\n\n")[0]
        named = [name for row in table.splitlines() if row for name in re.findall(r"`([\w-]+)`", row.split("|")[1])]

        assert sorted(ACTION["inputs"]) == sorted(named)
