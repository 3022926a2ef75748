"""`demi check` and `demi diff` on the command line: data, baseline, reports, and how they end."""

from __future__ import annotations

import json
import sys
from xml.etree import ElementTree as ET

import numpy as np
import pytest

from demi.runtime.openvino.session import openvino_version
from tests.calibration.bundles import X, edit_model, export, scale_weight

ROWS = np.random.default_rng(3).standard_normal((40, 4)).astype(np.float32)


@pytest.fixture(autouse=True)
def no_job(monkeypatch):
    """These tests are no job of GitHub's, though they may run in one."""
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)


@pytest.fixture
def bundle(tmp_path):
    """A sound bundle, and beside it data with labels."""
    zeros = np.zeros(40, int)
    np.savez(tmp_path / "eval.npz", x=ROWS, labels=zeros, few=np.zeros(3, int), many=zeros + 9)
    np.savez(tmp_path / "renamed.npz", z=ROWS)
    np.savez(tmp_path / "scalar.npz", x=np.float32(1))
    np.savez(tmp_path / "whole.npz", x=ROWS.astype(int))
    (tmp_path / "garbage.npz").write_bytes(b"garbage")
    return export(tmp_path)


DATA = ("--data", "eval.npz", "--labels", "labels", "--metric", "top1")


class TestData:
    """`--data`, `--labels`, `--metric`, `--max-loss`."""

    def test_table(self, demi, bundle):
        """The data's table beside the golden sets', and the metric of both models with its interval and seed."""
        code, out, err = demi("check", bundle, *DATA)

        assert (0, "") == (code, err)
        assert "40 samples of eval.npz against FP32" in out
        assert "top1 of `y`: FP32 " in out
        assert "paired bootstrap: 2,000 resamples of 40 samples, seed 2026" in out

    def test_json(self, demi, bundle):
        """The same as JSON, interval and all."""
        task = json.loads(demi("check", bundle, *DATA, "--seed", 5, "--json")[1])[0]["data"]["task"]

        assert ("top1", "y", 5) == (task["metric"], task["output"], task["interval"]["seed"])

    def test_an_own_metric(self, demi, bundle, tmp_path):
        """A function in the working folder, which cannot be resampled when it returns one number."""
        (tmp_path / "my_metric.py").write_text("def score(outputs, labels):\n    return len(labels) / 8\n")
        code, out, _ = demi("check", bundle, *DATA[:4], "--metric", "my_metric:score")

        assert 0 == code
        assert "my_metric:score: FP32 5, half 5, loss 0" in out
        assert "bootstrap" not in out

    def test_data_from_a_function(self, demi, bundle, tmp_path):
        """A function in the working folder that yields sets of inputs, imported where it says so."""
        lines = "import numpy as np\ndef sets():\n    import os, my_rows\n    yield {'x': my_rows.ROWS}\n"
        (tmp_path / "my_sets.py").write_text(lines)
        (tmp_path / "my_rows.py").write_text("import numpy as np\nROWS = np.ones((7, 4), np.float32)\n")
        code, out, _ = demi("check", bundle, "--data", "my_sets:sets")

        assert 0 == code
        assert "7 samples of my_sets:sets against FP32" in out

    def test_a_loss(self, demi, bundle):
        """Exit code 1; the message has the output, both numbers and the limit."""
        edit_model(bundle, scale_weight("w2_fp16", -9))
        code, _, err = demi("check", bundle, *DATA, "--max-loss", "0", "--budget", "relative_l2=100")

        assert 1 == code
        assert "metric lost: tiny v1: top1 of `y`: " in err
        assert "at most 0 is allowed" in err

    @pytest.mark.parametrize(
        ("arguments", "expected"),
        [
            (("--data", "none.npz"), "no such sample file"),
            (("--data", "eval.npz", "--labels", "few", "--metric", "top1"), "3 labels for 40 samples"),
            (("--data", "eval.npz", "--labels", "answers", "--metric", "top1"), "no array `answers`"),
            (("--data", "eval.npz", "--labels", "labels"), "labels without a metric have no effect"),
            (("--data", "eval.npz", "--metric", "top1"), "needs labels"),
            (("--data", "eval.npz", "--metric", "accurate"), "unknown metric `accurate`"),
            (("--data", "eval.npz", "--metric", "nowhere:score"), "cannot be imported"),
            (("--data", "eval.npz", "--metric", "y:top7"), "unknown metric `y:top7`"),
            (("--data", ""), "the name of the samples is empty"),
            (("--data", "eval.npz", "--labels", "", "--metric", "top1"), "no array `` with the labels"),
            (("--data", "eval.npz", "--labels", "labels", "--metric", ""), "unknown metric ``"),
            (("--labels", ""), "--labels needs --data"),
            (
                ("--data", "eval.npz", "--labels", "many", "--metric", "top1"),
                "the labels hold class 9, but the output has 2",
            ),
            (("--data", "renamed.npz"), "input `x` is missing"),
            (("--data", "scalar.npz"), "input `x` has shape [], expected [batch, 4]"),
            (("--data", "whole.npz"), "hint: there is x (int64)"),
            (("--data", "garbage.npz"), "it is not a file of arrays, or holds Python objects"),
            (("--metric", "top1"), "has no data to run on"),
            (("--labels", "labels"), "--labels needs --data"),
            (("--max-loss", "0.1"), "a limit for the loss needs a metric"),
            (("--max-loss", "nan"), "--max-loss"),
            (("--max-loss", "-1"), "--max-loss"),
            (("--write-baseline",), "--write-baseline needs a file"),
            (("--tolerance", "top1=1"), "--tolerance needs --write-baseline"),
            (("--baseline", "b.json", "--tolerance", "top1=1"), "--tolerance needs --write-baseline"),
            (("--baseline", "none.json"), "no such baseline"),
            (("--baseline", "b.json", "--write-baseline", "--tolerance", "top1"), "as a tolerance"),
            (("--baseline", "eval.npz", "--write-baseline"), "the baseline cannot be read"),
            (("--seed", "-1"), "--seed"),
        ],
    )
    def test_options_that_cannot_be_used(self, demi, bundle, arguments, expected):
        """Exit code 2, and a message to someone."""
        code, out, err = demi("check", bundle, *arguments)

        assert (2, "") == (code, out)
        assert expected in err
        assert "Traceback" not in err


class TestCodeOfTheUsers:
    """Functions that data and metrics come from may do anything."""

    @pytest.mark.parametrize(
        ("body", "expected"),
        [
            ("raise SystemExit(0)", "the metric `mine:score` failed: SystemExit: 0"),
            ("raise ValueError('no')", "the metric `mine:score` failed: ValueError: no"),
            ("return float('inf')", "the metric `mine:score` is infinite for FP32"),
            ("return float('nan')", "the metric `mine:score` is NaN for FP32"),
        ],
    )
    def test_a_metric_without_a_score(self, demi, bundle, tmp_path, monkeypatch, body, expected):
        """The function is named, and the check fails."""
        monkeypatch.delitem(sys.modules, "mine", raising=False)
        (tmp_path / "mine.py").write_text(f"def score(outputs, labels):\n    {body}\n")
        code, out, err = demi("check", bundle, "--data", "eval.npz", "--metric", "mine:score")

        assert (2, "") == (code, out)
        assert expected in err

    def test_output_of_a_metric_goes_to_stderr(self, demi, bundle, tmp_path, monkeypatch):
        """Prints of a metric go to stderr, because a program reads the JSON on stdout."""
        monkeypatch.delitem(sys.modules, "mine", raising=False)
        (tmp_path / "mine.py").write_text("def score(outputs, labels):\n    print('hello')\n    return 0.5\n")
        code, out, err = demi("check", bundle, "--data", "eval.npz", "--metric", "mine:score", "--json")

        assert 0 == code
        assert json.loads(out)
        assert "hello" in err

    def test_a_metric_that_half_has_no_score_in(self, demi, bundle, tmp_path, monkeypatch):
        """An infinite score of half alone fails the check."""
        monkeypatch.delitem(sys.modules, "mine", raising=False)
        lines = "calls = []\ndef score(outputs, labels):\n    calls.append(1)\n    return [1.0, float('inf')][len(calls) - 1]\n"
        (tmp_path / "mine.py").write_text(lines)
        code, _, err = demi("check", bundle, "--data", "eval.npz", "--metric", "mine:score")

        assert 1 == code
        assert "metric lost: tiny v1: mine:score: inf in half, 1 in FP32" in err

    @pytest.mark.parametrize(
        ("body", "expected"), [("return iter(())", "yields nothing"), ("raise SystemExit(0)", "SystemExit: 0")]
    )
    @pytest.mark.parametrize("command", [("check", "--data"), ("explain", "--input")])
    def test_data_that_never_arrives(self, demi, bundle, tmp_path, monkeypatch, command, body, expected):
        """Nothing to look at is not the same as nothing found."""
        monkeypatch.delitem(sys.modules, "my_sets", raising=False)
        (tmp_path / "my_sets.py").write_text(f"def sets():\n    {body}\n")
        code, out, err = demi(command[0], bundle, command[1], "my_sets:sets")

        assert (2, "") == (code, out)
        assert expected in err


@pytest.mark.skipif(openvino_version() is None, reason="OpenVINO is not installed")
class TestOpenVino:
    """`--runtime openvino`: the CPU computes in half itself."""

    @pytest.fixture(autouse=True)
    def key(self, tmp_path, monkeypatch):
        """Proofs are sealed with a key of this test's own."""
        monkeypatch.setenv("DEMI_ENGINE_KEY", str(tmp_path / "key"))

    def test_the_emulator_beside_it(self, demi, bundle):
        """The hardware's error is judged, and the emulator's is told."""
        code, out, err = demi("check", bundle, "--runtime", "openvino")

        if code:
            assert (3, True) == (code, "cannot be served by OpenVINO" in err)
            return
        assert "tiny v1 (fp16 on openvino): " in out
        assert "the emulator predicts for `y`: " in out

    def test_weights_that_are_others(self, demi, bundle):
        """What the CPU computes wrongly is over budget."""
        edit_model(bundle, scale_weight("w1_fp16", 50))
        code, out, _ = demi("check", bundle, "--runtime", "openvino")

        assert (1, True) == (code, "OVER" in out) or code == 3

    def test_a_baseline_of_the_emulator(self, demi, bundle):
        """Measures of the emulator and of hardware are not compared."""
        demi("check", bundle, "--baseline", "b.json", "--write-baseline")
        code, _, err = demi("check", bundle, "--baseline", "b.json", "--runtime", "openvino")

        assert (2, True) == (code, "on cpu" in err and "openvino" in err) or code == 3


def test_openvino_on_a_gpu(demi, bundle):
    """It runs on a CPU here."""
    code, _, err = demi("check", bundle, "--device", "cuda", "--runtime", "openvino")

    assert (2, True) == (code, "OpenVINO runs on a CPU here" in err)


class TestBaseline:
    """`--baseline`, `--write-baseline`, `--tolerance`, `--on-plan-change`."""

    def test_a_baseline_is_written_and_kept(self, demi, bundle, tmp_path):
        """The bundle passes against its own baseline, and fails with a changed weight, even within the budget."""
        code, _, err = demi("check", bundle, *DATA, "--baseline", "b.json", "--write-baseline")
        assert 0 == code
        assert "b.json: tiny: relative_l2 of `y` " in err

        assert 0 == demi("check", bundle, *DATA, "--baseline", "b.json")[0]
        edit_model(bundle, scale_weight("w1_fp16", 1.02, position=9))
        code, out, err = demi("check", bundle, *DATA, "--baseline", "b.json")
        assert 1 == code
        assert "WORSE" in out
        assert "worse than the baseline: tiny v1: relative_l2 of `y` is " in err
        assert "% interval, paired bootstrap: 2,000 resamples of 40 samples, seed 2026" in err

    def test_a_tolerance(self, demi, bundle, tmp_path):
        """A tolerance is written to the file and kept when the baseline is written again."""
        write = ("check", bundle, "--baseline", "b.json", "--write-baseline")
        demi(*write, "--tolerance", "relative_l2=50%")
        demi(*write)

        assert '"tolerance": "50%"' in (tmp_path / "b.json").read_text()

    def test_a_tolerance_for_nothing(self, demi, bundle, tmp_path):
        """A measure that is not taken is reported, and nothing is written."""
        code, _, err = demi("check", bundle, "--baseline", "b.json", "--write-baseline", "--tolerance", "top1=1")

        assert 2 == code
        assert "unknown measure `top1`" in err
        assert not (tmp_path / "b.json").exists()

    def test_other_models_stay(self, demi, bundle, tmp_path):
        """Writing one model's baseline leaves the others in the file."""
        demi("check", bundle, "--baseline", "b.json", "--write-baseline")
        text = (tmp_path / "b.json").read_text().replace('"tiny"', '"other"')
        (tmp_path / "b.json").write_text(text)
        demi("check", bundle, "--baseline", "b.json", "--write-baseline")

        assert {"tiny", "other"} == set(json.loads((tmp_path / "b.json").read_text())["models"])

    def test_another_model(self, demi, bundle, tmp_path):
        """The baseline of another model is bad input."""
        demi("check", bundle, "--baseline", "b.json", "--write-baseline")
        (tmp_path / "b.json").write_text((tmp_path / "b.json").read_text().replace('"tiny"', '"other"'))
        code, _, err = demi("check", bundle, "--baseline", "b.json")

        assert 2 == code
        assert "holds no model `tiny`" in err

    def test_a_failed_check_is_no_baseline(self, demi, bundle, tmp_path):
        """A bundle over budget is not written to the baseline."""
        edit_model(bundle, scale_weight("w1_fp16", 50))
        code, _, err = demi("check", bundle, "--baseline", "b.json", "--write-baseline")

        assert 1 == code
        assert "b.json: not written, because not every bundle passed" in err
        assert not (tmp_path / "b.json").exists()

    @pytest.mark.parametrize(
        ("choice", "code", "said"), [("ignore", 0, ""), ("warn", 0, "warning: "), ("fail", 1, "plan changed: ")]
    )
    def test_a_node_that_changed_precision(self, demi, bundle, tmp_path, choice, code, said):
        """The change is ignored, a warning or a failure, depending on the option."""
        demi("check", bundle, "--baseline", "b.json", "--write-baseline")
        text = (tmp_path / "b.json").read_text().replace('"act": "half safe"', '"act": "single overflow"')
        (tmp_path / "b.json").write_text(text)
        ended, _, err = demi("check", bundle, "--baseline", "b.json", "--on-plan-change", choice)

        assert code == ended
        assert err == (said and f"{said}tiny v1: `act`: FP32 (overflow) -> half (safe) changed precision\n")


class TestReports:
    """`--junit`, `--markdown`, and GitHub's summary."""

    def test_files(self, demi, bundle, tmp_path):
        """Both are written, and say what the table says."""
        edit_model(bundle, scale_weight("w1_fp16", 50))
        assert 1 == demi("check", bundle, "--junit", "out.xml", "--markdown", "out.md")[0]

        assert 1 == len(ET.parse(tmp_path / "out.xml").findall(".//failure"))
        assert "(fp16): **FAILED**" in (tmp_path / "out.md").read_text()

    def test_the_summary_of_a_job(self, demi, bundle, tmp_path, monkeypatch):
        """Each check adds to it; without the variable nothing is written."""
        monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
        (tmp_path / "summary.md").write_text("before\n")
        demi("check", bundle)
        demi("check", bundle)

        text = (tmp_path / "summary.md").read_text()
        assert text.startswith("before\n")
        assert 2 == text.count("### `tiny` v1 (fp16): passed")

    def test_a_summary_that_cannot_be_written(self, demi, bundle, tmp_path, monkeypatch):
        """The failure is a warning, because the check itself is complete."""
        monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "no" / "summary.md"))
        code, _, err = demi("check", bundle)

        assert 0 == code
        assert err.startswith("warning: cannot write the job's summary")

    @pytest.mark.parametrize("option", ["--junit", "--markdown"])
    @pytest.mark.parametrize("path", ["no/out", "."])
    def test_a_path_that_cannot_be_written(self, demi, bundle, tmp_path, option, path):
        """The error comes before anything is measured, and no files are left."""
        before = sorted(tmp_path.rglob("*"))
        code, out, err = demi("check", bundle, option, path)

        assert (2, "") == (code, out)
        assert "the file cannot be written" in err
        assert before == sorted(tmp_path.rglob("*"))

    @pytest.mark.parametrize(
        "options", [("--junit", "a", "--markdown", "./a"), ("--junit", "a", "--baseline", "a", "--write-baseline")]
    )
    def test_one_file_for_two_results(self, demi, bundle, tmp_path, options):
        """One would take the place of the other."""
        code, out, err = demi("check", bundle, *options)

        assert (2, "") == (code, out)
        assert "two results would be written to the same file" in err
        assert not (tmp_path / "a").exists()

    def test_one_damaged_bundle(self, demi, bundle, tmp_path):
        """The others are checked and reported, the damaged one as an error; the exit code is the worst."""
        damaged = export(tmp_path, version=2)
        (damaged / "model.onnx").write_bytes(b"x")
        code, out, err = demi("check", damaged, bundle, "--junit", "out.xml", "--markdown", "out.md")

        assert 2 == code
        assert "tiny/1: passed" in out
        assert "error: `model.onnx` is not the file that was written" in err
        assert ["1", "0"] == [suite.get("errors") for suite in ET.parse(tmp_path / "out.xml").getroot()]
        assert "could not be checked" in (tmp_path / "out.md").read_text()

    def test_one_damaged_bundle_as_json(self, demi, bundle, tmp_path):
        """An entry for each, in order."""
        code, out, _ = demi("check", tmp_path / "none", bundle, "--json")
        first, second = json.loads(out)

        assert (2, False, True) == (code, first["passed"], second["passed"])
        assert "no such bundle" == first["error"]["message"]


class TestDiff:
    """`demi diff`."""

    def test_table(self, demi, bundle, tmp_path):
        """Figures side by side; for one plan twice that nothing differs."""
        code, out, err = demi("diff", bundle, export(tmp_path, version=2))

        assert (0, "") == (code, err)
        for words in ("nodes in half", "model bytes", "relative L2 of y", "the plans are equal"):
            assert words in out

    def test_plans(self, demi, bundle, tmp_path):
        """Two plan files: the node that differs, both reasons, the evidence."""
        text = (bundle / "plan.json").read_text()
        plan = json.loads(text)
        plan["decisions"][0] |= {"precision": "single", "reason": "pinned", "evidence": "by hand"}
        (tmp_path / "other.json").write_text(json.dumps(plan))
        code, out, _ = demi("diff", bundle / "plan.json", "other.json")

        assert 0 == code
        assert ["first", "MatMul", "half:", "safe", "FP32:", "pinned", "by", "hand"] == next(
            line.split() for line in out.splitlines() if "pinned" in line
        )
        (node,) = json.loads(demi("diff", bundle / "plan.json", "other.json", "--json")[1])["nodes"]
        assert ("first", "single", "half") == (node["node"], node["now"]["precision"], node["was"]["precision"])

    def test_other_golden_sets(self, demi, bundle, tmp_path):
        """Errors on different inputs are not compared in silence."""
        from demi.bundles.bundle import Golden, open_bundle, write_golden
        from tests.calibration.bundles import reseal

        other = export(tmp_path, version=2)
        golden = open_bundle(other).golden()
        write_golden(other, Golden([{"x": X + 1}], golden.outputs[:1]))
        reseal(other)
        _, _, err = demi("diff", bundle, other)

        assert err.startswith("note: the golden sets differ")
        assert "" == demi("diff", bundle, other, "--data", "eval.npz")[2]

    def test_a_folder_without_a_bundle(self, demi, bundle):
        """Exit code 2."""
        assert 2 == demi("diff", bundle, "none")[0]
