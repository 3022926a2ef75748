"""The entry point: all errors look the same, results go to stdout and everything else to stderr."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from demi.bundles.bundle import writing
from demi.cli import check
from demi.cli.commands import COMMANDS, EXIT_CODES, build_parser
from demi.cli.main import export_main, main
from demi.errors import CrashError, DefectError, OverBudgetError
from demi.version import __version__
from tests.calibration.bundles import export
from tests.paths import ROOT

HEAVY = ("torch", "onnx", "onnx_ir", "onnxruntime", "fastapi", "scipy", "demi.exporter.pipeline", "rich")


def loaded_after(code):
    """Which heavy packages a fresh interpreter has loaded after some code."""
    probe = f"import sys\n{code}\nprint(*(name for name in {HEAVY!r} if name in sys.modules))"
    return (
        subprocess.run([sys.executable, "-c", probe], check=True, capture_output=True, text=True)
        .stdout.split("\n")[-2]
        .split()
    )


class TestHelp:
    """Help is instant, and complete."""

    @pytest.mark.parametrize("arguments", [["--help"], *([command, "--help"] for command in COMMANDS)])
    def test_help_loads_no_heavy_package(self, arguments):
        """No command imports what it needs before it runs."""
        code = f"from demi.cli.main import main\ntry: main({arguments!r})\nexcept SystemExit: pass"

        assert [] == loaded_after(code)

    def test_probe_would_find_one(self):
        """The probe of the test above does see a heavy package."""
        assert ["rich"] == loaded_after("import rich")

    @pytest.mark.parametrize("arguments", [["--help"], *([command, "--help"] for command in COMMANDS)])
    def test_help_ends_well(self, arguments, capsys):
        """Help is a result: stdout, exit code 0, with the exit codes in it."""
        with pytest.raises(SystemExit) as caught:
            main(arguments)

        assert 0 == caught.value.code
        assert EXIT_CODES.split(",")[0] in capsys.readouterr().out

    def test_version(self, capsys):
        """`--version` says which."""
        with pytest.raises(SystemExit):
            main(["--version"])
        assert f"demi {__version__}\n" == capsys.readouterr().out

    def test_every_command_is_listed(self):
        """The help lists every command with what it does."""
        text = build_parser().format_help()

        assert all(command in text for command in COMMANDS)


class TestUsage:
    """Arguments that cannot be read."""

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--bogus"], "--bogus"),
            (["dance"], "dance"),
            (["export"], "model"),
            (["export", "m.pt", "--bogus"], "--bogus"),
            (["export", "m.pt", "--fp16", "--bf16"], "--bf16"),
            (["export", "m.pt", "--model-version", "0"], "`0` is not a positive number"),
            (["export", "m.pt", "--max-batch", "x"], "`x` is not a positive number"),
            (["export", "m.onnx", "--bf16", "--half-io"], "--half-io needs --fp16"),
            (["export", "m.onnx", "--budget", "l2=1"], "`l2=1`"),
            (["export", "m.onnx", "--input", "x"], "`x` as an input"),
            (["export", "m.onnx", "--input", "x[1]", "--input", "x[2]"], "the input `x` is given 2 times"),
            (["check"], "BUNDLE"),
            (["check", "b", "--budget", "cosine=2"], "not a limit for cosine"),
            (["bench", "b", "--batch", "1,0"], "not a list of batch sizes"),
            (["bench", "b", "--device", "tpu"], "unknown device `tpu`"),
            (["bench", "b", "--seconds", "soon"], "soon"),
        ],
    )
    def test_bad_arguments(self, arguments, message, capsys):
        """Exit code 2; `error:` and `hint:` on stderr, nothing on stdout."""
        assert 2 == main(arguments)

        out, err = capsys.readouterr()
        assert "" == out
        assert err.startswith("error: ")
        assert "\nhint: " in err
        assert message in err

    def test_no_command(self, capsys):
        """Without a command, the help goes to stderr, and the exit code is 2."""
        assert 2 == main([])

        out, err = capsys.readouterr()
        assert "" == out
        assert "COMMAND" in err


class TestErrors:
    """Errors of commands."""

    @pytest.mark.parametrize(
        "arguments",
        [["export", "none.onnx"], ["check", "none"], ["bench", "none"], ["calibrate", "none.onnx"], ["serve", "none"]],
        ids=lambda arguments: arguments[0],
    )
    def test_missing_file(self, arguments, capsys, tmp_path, monkeypatch):
        """A missing path is exit code 2, with the path in the message."""
        monkeypatch.chdir(tmp_path)

        assert 2 == main(arguments)

        out, err = capsys.readouterr()
        assert "" == out
        assert "none" in err
        assert "\nhint: " in err

    @pytest.mark.parametrize("command", ["export", "calibrate"])
    def test_sample_file_that_is_missing(self, command, capsys, tmp_path):
        """So is a file of samples."""
        assert 2 == main([command, str(tmp_path / "m.onnx"), "--sample", str(tmp_path / "none.npz")])
        assert "no such sample file" in capsys.readouterr().err

    def test_no_trace(self, capsys, tmp_path):
        """An error is for people: no trace."""
        main(["check", str(tmp_path)])

        assert "Traceback" not in capsys.readouterr().err

    def test_verbose_trace(self, capsys, tmp_path):
        """With `--verbose` the trace comes first, the error last."""
        main(["check", str(tmp_path), "--verbose"])
        err = capsys.readouterr().err

        assert "Traceback" in err
        assert err.rstrip().split("\n")[-1].startswith("hint: ")

    @pytest.mark.parametrize("more", [[], ["--verbose"]])
    def test_system_errors_are_reported(self, monkeypatch, capsys, more):
        """System errors have the system's message and the path; only `--verbose` shows the traceback."""

        def refused(args, console):
            Path("/proc/self/file/x").read_bytes()

        monkeypatch.setattr(check, "run", refused)
        code = main(["check", "x", *more])
        err = capsys.readouterr().err

        assert 2 == code
        assert "error: operating system error: No such file or directory\n  in /proc/self/file/x\n" in err
        assert bool(more) == ("Traceback" in err)

    @pytest.mark.parametrize(
        ("raised", "code", "words"),
        [
            (MemoryError("Unable to allocate 3 TiB"), 3, "out of memory: Unable to allocate 3 TiB"),
            (ImportError("libx.so: no such file"), 3, "cannot import a Python package: libx.so: no such file"),
            (DefectError("the converted model is not valid"), 70, "the converted model is not valid"),
            (CrashError("it died"), 4, "it died"),
        ],
    )
    def test_exit_codes_match_the_help(self, monkeypatch, capsys, raised, code, words):
        """A defect of Demi has its own exit code, and nothing else has it."""

        def failing(args, console):
            raise raised

        monkeypatch.setattr(check, "run", failing)

        assert code == main(["check", "b"])
        assert f"error: {words}" in capsys.readouterr().err


class TestMissingPackages:
    """Machines with fewer packages."""

    @pytest.mark.parametrize(
        ("missing", "command", "extra"),
        [
            ("onnx_ir", ["export", "m.onnx"], "export"),
            ("onnxruntime", ["check", "BUNDLE"], "cpu"),
            ("fastapi", ["serve", "BUNDLE"], "server"),
            ("torch", ["export", "MODEL.pt"], "torch"),
        ],
    )
    def test_extra_is_named(self, missing, command, extra, tmp_path):
        """Exit code 3, and the command that brings the package."""
        bundle = export(tmp_path)
        (tmp_path / "m.pt").write_bytes(b"x")
        command = [
            str(bundle) if word == "BUNDLE" else word.replace("MODEL.pt", str(tmp_path / "m.pt")) for word in command
        ]
        code = (
            f"import sys\nsys.modules[{missing!r}] = None\nfrom demi.cli.main import main\nsys.exit(main({command!r}))"
        )
        ended = subprocess.run(
            [sys.executable, "-c", code], check=False, capture_output=True, text=True, cwd=tmp_path, env=environment()
        )

        assert (3, "") == (ended.returncode, ended.stdout)
        assert f"pip install 'demi-inference[{extra}]'" in ended.stderr
        assert "Traceback" not in ended.stderr


class TestScripts:
    """The ways to start it."""

    @pytest.mark.parametrize("module", ["demi", "demi.cli"])
    def test_module(self, module):
        """`python -m demi` works where scripts are not on the path."""
        ended = subprocess.run(
            [sys.executable, "-m", module, "--version"], check=True, capture_output=True, text=True, env=environment()
        )

        assert f"demi {__version__}\n" == ended.stdout

    def test_export_script(self, tmp_path, monkeypatch, capsys):
        """`export MODEL` is `demi export MODEL`."""
        monkeypatch.setattr(sys, "argv", ["export", "--fp16", str(tmp_path / "none.pt")])

        assert 2 == export_main()
        assert "no such file" in capsys.readouterr().err

    def test_interrupt(self, monkeypatch, capsys):
        """Ctrl-C ends a command with 130 and a line, no trace."""

        def interrupted(args, console):
            raise KeyboardInterrupt

        monkeypatch.setattr(check, "run", interrupted)

        assert 130 == main(["check", "b"])
        assert "interrupted; no partial files were left behind\n" == capsys.readouterr().err

    def test_terminated(self, monkeypatch, capsys, tmp_path):
        """SIGTERM ends a command as Ctrl-C does: drafts are removed, and the process does what it did before after it."""

        def stopped(args, console):
            with writing(tmp_path / "models" / "m" / "1") as draft:
                (draft / "model.onnx").write_text("half of it")
                os.kill(os.getpid(), signal.SIGTERM)
                pytest.fail("the signal was not heard")

        monkeypatch.setattr(check, "run", stopped)

        assert 143 == main(["check", "b"])
        assert "terminated by SIGTERM; no partial files were left behind\n" == capsys.readouterr().err
        assert [] == list(tmp_path.iterdir())
        assert signal.SIG_DFL is signal.getsignal(signal.SIGTERM)

    @pytest.mark.parametrize("flags", [[], ["--json"]])
    def test_characters_that_the_terminal_lacks(self, tmp_path, flags):
        """They are written as escapes, in JSON by its own."""
        (tmp_path / "ünï").mkdir()
        bundle = export(tmp_path / "ünï")
        ended = subprocess.run(
            [sys.executable, "-m", "demi", "check", str(bundle), *flags],
            check=True,
            capture_output=True,
            env=environment() | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"},
        )
        written = ended.stdout.decode("ascii")

        assert str(bundle) == json.loads(written)[0]["bundle"] if flags else "\\xfcn\\xef" in written

    @pytest.mark.parametrize(("error", "code"), [(OverBudgetError("too far"), 1)])
    def test_exit_code_is_the_errors(self, monkeypatch, error, code):
        """Whatever a command raises, its exit code is the error's."""

        def failing(args, console):
            raise error

        monkeypatch.setattr(check, "run", failing)

        assert code == main(["check", "b"])

    def test_closed_pipe(self, tmp_path):
        """A closed pipe is not an error: `demi check ... | head -0`."""
        bundle = export(tmp_path)
        command = f"{sys.executable} -m demi check {bundle} | true; echo ${{PIPESTATUS[0]}}"
        ended = subprocess.run(["bash", "-c", command], check=True, capture_output=True, text=True, env=environment())

        assert ("0\n", "") == (ended.stdout, ended.stderr)


def environment():
    """This environment, with the packages of this repository on the path."""
    return os.environ | {"PYTHONPATH": str(ROOT)}


def test_json_documents_are_objects_or_lists(tmp_path, capsys):
    """Every `--json` document can be read by a machine."""
    assert 0 == main(["check", str(export(tmp_path)), "--json"])
    assert isinstance(json.loads(capsys.readouterr().out), list)
