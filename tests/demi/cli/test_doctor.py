"""`demi doctor` and `demi completion`."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from types import SimpleNamespace

import pytest

from demi.cli import machine
from demi.cli.commands import COMMANDS
from demi.cli.doctor import command_states, require_working
from demi.cli.needs import HELPFUL, INSTEAD, NEEDS, NOT_REQUIRED, packages_by_extra, problems
from demi.errors import MissingError
from tests.paths import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]


def requirements():
    """Demi's requirements, as an installed package states them."""
    found = []
    for extra, lines in EXTRAS.items():
        for line in lines:
            name, _, marker = line.partition(";")
            found.append(f'{name.strip()}; {f"({marker.strip()}) and " if marker else ""}extra == "{extra}"')
    return [*PROJECT["dependencies"], *found]


def states(versions):
    """The state of every command where these packages are installed, by name of the command."""
    found = command_states(packages_by_extra(requirements(), versions.get))
    return {state.command: state for state in found}


EVERYTHING = dict.fromkeys(("onnxruntime", "onnx", "onnx-ir", "onnxconverter-common", "onnxscript", "scipy"), "9999")


class TestNeeds:
    """The table of what commands need."""

    def test_every_command_has_a_row(self):
        """A new command states its needs, and every extra named is one of the project's."""
        assert COMMANDS.keys() == NEEDS.keys()
        assert {*HELPFUL} <= COMMANDS.keys()
        assert {extra for row in (*NEEDS.values(), *HELPFUL.values()) for extra in row} <= EXTRAS.keys()

    def test_exceptions_are_still_packages_of_the_project(self):
        """The tables of exceptions name packages that some extra brings."""
        names = {each.name for found in packages_by_extra(requirements(), {}.get).values() for each in found}

        assert {*INSTEAD, *INSTEAD.values(), *NOT_REQUIRED} <= names

    def test_missing_package(self):
        """A command without its packages names them, and what installs them; others work."""
        found = states({name: version for name, version in EVERYTHING.items() if name != "onnx"})

        assert ("onnx is missing",) == found["export"].lacks
        assert "pip install 'demi-inference[export]'" == found["export"].install
        assert not found["check"]
        assert found["run"]
        assert found["list"]

    def test_old_package(self):
        """A version that is too old counts as a problem."""
        assert ("onnxruntime is 1.0, and >=1.24 is needed",) == states(EVERYTHING | {"onnxruntime": "1.0"})["run"].lacks

    def test_the_runtime_for_gpus_replaces_the_one_for_cpus(self):
        """onnxruntime-gpu serves commands that need ONNX Runtime; OpenVINO is needed by none."""
        versions = EVERYTHING | {"onnxruntime-gpu": "9999"}
        del versions["onnxruntime"]

        assert states(versions)["run"]
        assert not states({})["run"]

    def test_parts_of_commands(self):
        """Extras for a part of a command are optional."""
        found = states(EVERYTHING)["export"]

        assert found
        assert (
            "PyTorch files (extra `torch`)",
            "report.html (extra `report`)",
            "text, images, sound (extra `processing`)",
        ) == found.optional

    def test_an_extra_that_the_installed_package_does_not_know(self):
        """An old installation beside newer code is a problem, not a success."""
        assert "does not know its extra `train`" in problems("train", {})[0]


class TestCommand:
    """`demi doctor` on this machine."""

    def test_tables(self, demi):
        """The machine, the packages and the commands; exit code 0 whatever is missing."""
        code, out, _ = demi("doctor")

        assert 0 == code
        for words in ("Python", "CPU", "GPU", "ONNX Runtime", "OpenVINO", "TensorRT", "demi serve", "onnxscript"):
            assert words in out

    def test_json(self, demi):
        """Every command is in the JSON, with whether it works."""
        code, out, _ = demi("doctor", "--json", "export", "check")

        assert 0 == code
        assert {*COMMANDS} == {each["command"] for each in json.loads(out)["commands"]}

    def test_a_named_command_that_cannot_work(self, demi, monkeypatch):
        """Exit code 3, with what is missing and how to install it, after the tables."""
        monkeypatch.setattr(
            "demi.cli.doctor.packages_by_extra", lambda wanted: packages_by_extra(requirements(), {}.get)
        )
        code, out, err = demi("doctor", "serve")

        assert 3 == code
        assert "commands" in out
        assert "`demi serve` cannot work here: onnxruntime is missing; fastapi is missing" in err
        assert "pip install 'demi-inference[cpu,server]'" in err
        assert 0 == demi("doctor", "list")[0]

    def test_unknown_command(self, demi):
        """A name that is not a command is a usage error with a suggestion."""
        code, _, err = demi("doctor", "srve")

        assert 2 == code
        assert "did you mean demi serve?" in err

    def test_commands_that_work_pass(self):
        """Nothing is raised for commands that lack nothing."""
        require_working([states(EVERYTHING)["run"]])
        with pytest.raises(MissingError):
            require_working([states({})["run"]])


class TestMachine:
    """Rows about the machine."""

    @pytest.mark.parametrize(("units", "words"), [((), "no matrix units"), (("bf16",), "matrix units for bf16")])
    def test_cpu(self, monkeypatch, units, words):
        """The CPU's row states whether half can be faster on it."""
        cpu = SimpleNamespace(name="X", half_units=lambda: ["U"], multiplies=lambda precision: precision in units)
        monkeypatch.setattr("demi.runtime.openvino.capability.read_cpu", lambda: cpu)

        assert words in machine.cpu().remark


class TestCompletion:
    """`demi completion`."""

    @pytest.mark.parametrize("shell", ["bash", "zsh"])
    def test_commands_and_options_are_in_the_script(self, demi, shell):
        """The script knows every command, and options of single commands."""
        code, out, _ = demi("completion", shell)

        assert 0 == code
        assert all(command in out for command in (*COMMANDS, "--max-queue-delay-us", "--keep-fp32"))

    def test_bash_runs_it(self, demi, tmp_path):
        """Bash accepts the script, and completes `demi exp` to `demi export`."""
        (tmp_path / "demi.bash").write_text(demi("completion", "bash")[1])
        ask = (
            'source ./demi.bash; COMP_WORDS=(demi exp); COMP_CWORD=1; COMP_LINE="demi exp"; '
            'COMP_POINT=8; $(complete -p demi | sed "s/.*-F \\([^ ]*\\).*/\\1/"); echo "${COMPREPLY[@]}"'
        )
        found = subprocess.run(["bash", "-c", ask], cwd=tmp_path, capture_output=True, text=True)

        assert "export" in found.stdout.split(), found.stderr

    def test_paths_are_completed(self, demi):
        """Values that are paths complete to files, also where the option takes a function as well."""
        script = demi("completion", "bash")[1]

        for option in ("run___input", "run__o", "export___sample", "check_pos_0"):
            assert f"_shtab_demi_{option}_COMPGEN=_shtab_compgen_files" in script

    def test_without_shtab(self, demi, monkeypatch):
        """The package that writes the script is optional; the error names the extra."""
        monkeypatch.setitem(sys.modules, "shtab", None)
        code, out, err = demi("completion", "bash")

        assert (3, "") == (code, out)
        assert "demi-inference[completion]" in err
