"""The output of each command, as tables and as JSON, and its exit code."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnx.parser
import pytest

from demi.bundles.bundle import open_bundle
from demi.bundles.find import versions
from demi.calibration.samples import Samples
from demi.cli.export_notes import warnings_of
from demi.exporter.sources.samples import EXAMPLES
from demi.runtime.openvino.capability import formats_for, read_cpu
from demi.runtime.openvino.session import openvino_version
from tests.calibration.bundles import X, edit_model, export, force_half, reseal, scale_weight
from tests.calibration.explain.test_explain import INDEX
from tests.models import MLP, OVERFLOW, SQUARES, parse, text


@pytest.fixture
def model(tmp_path):
    """A small model in a file."""
    (tmp_path / "tiny.onnx").write_bytes(text(parse(MLP)))
    return tmp_path / "tiny.onnx"


@pytest.fixture
def sample(tmp_path):
    """Its inputs in a file."""
    np.savez(tmp_path / "x.npz", x=X)
    return tmp_path / "x.npz"


def without_notes(err: str) -> str:
    """The messages of a command, but for those that depend on whether this machine has a GPU."""
    return "".join(line for line in err.splitlines(keepends=True) if not line.startswith("note: "))


class TestExport:
    """`demi export`."""

    def test_table(self, demi, model, sample):
        """One table: nodes by precision and reason, sizes, the error against the budget, where the bundle is."""
        code, out, err = demi("export", "--fp16", model, "--sample", sample, "--no-calibrate")

        assert (0, "") == (code, without_notes(err))
        assert "tiny: FP32 -> mixed fp16" in out
        for words in (
            "nodes in fp16",
            "safe",
            "casts",
            "weights",
            "50% of",
            "error of y",
            "relative_l2 <= 0.01",
            "models/tiny/1",
        ):
            assert words in out

    def test_for_this_cpu(self, demi, model, sample, tmp_path, monkeypatch):
        """The format is chosen, the reason printed, and the CPU itself judges what was made, where it can."""
        monkeypatch.setenv("DEMI_ENGINE_KEY", str(tmp_path / "key"))
        code, _, err = demi("export", "--for", "cpu", model, "--sample", sample, "--no-calibrate")

        formats, _ = formats_for(read_cpu())
        assert (0, True) == (code, f"note: exporting in {formats[0]}: " in err)
        assert any(f"note: {each} in OpenVINO" in err or f"note: {each} cannot be served" in err for each in formats)

    def test_a_format_that_was_chosen_by_hand(self, demi, model, sample, tmp_path, monkeypatch):
        """It stays."""
        monkeypatch.setenv("DEMI_ENGINE_KEY", str(tmp_path / "key"))
        arguments = ("--no-calibrate", "--budget", "relative_l2=0.1", "--json")
        _, out, err = demi("export", "--bf16", "--for", "cpu", model, "--sample", sample, *arguments)

        assert ("bf16", False) == (json.loads(out)["precision"], "exporting in" in err)

    def test_a_plan_for_this_cpu(self, demi, model, sample, tmp_path, monkeypatch):
        """The plan names the kernels that OpenVINO fuses, and `demi check` measures the error that the export measured."""
        pytest.importorskip("openvino")
        monkeypatch.setenv("DEMI_ENGINE_KEY", str(tmp_path / "key"))
        _, out, _ = demi("export", "--fp16", "--for", "cpu", model, "--sample", sample, "--json")
        bundle = Path(json.loads(out)["bundle"])
        measured = json.loads((bundle / "accuracy.json").read_text())["outputs"][0]["relative_l2"]
        _, checked, _ = demi("check", bundle, "--json")

        assert {"first", "bias", "act"} == json.loads((bundle / "plan.json").read_text())["kernels"].keys()
        assert measured == pytest.approx(json.loads(checked)[0]["outputs"][0]["relative_l2"], rel=0.05)

    @pytest.mark.parametrize("option", ["--no-run", "--tensorrt"])
    def test_nothing_to_judge_on_this_cpu(self, demi, model, option):
        """What does not run here cannot be judged here."""
        code, _, err = demi("export", "--for", "cpu", model, option)

        assert (2, True) == (code, "--for cpu needs a bundle that runs in OpenVINO" in err)

    def test_the_printed_path_is_the_bundle(self, demi, model, tmp_path):
        """Without `-o` the bundle is in models/NAME/VERSION below the working folder."""
        demi("export", model, "--no-calibrate", "--model-version", 3)

        assert 3 == open_bundle(tmp_path / "models" / "tiny").manifest.version

    def test_files_of_a_crashed_export_are_removed(self, demi, model, sample, tmp_path):
        """A draft whose maker has died is removed by the next export to the same place, which says so."""
        left = tmp_path / "models" / "tiny" / ".1-0.partial"
        left.mkdir(parents=True)
        (left / "model.onnx").write_text("half of it")
        code, _, err = demi("export", model, "--sample", sample, "--no-calibrate")

        assert 0 == code
        assert "note: removed `.1-0.partial`, left by a process that crashed while writing here\n" in err
        assert not left.exists()

    def test_json(self, demi, model, sample):
        """With `--json` stdout is one JSON document and nothing else."""
        code, out, err = demi("export", model, "--sample", sample, "--no-calibrate", "--json")
        document = json.loads(out)

        assert (0, "") == (code, without_notes(err))
        assert document["within_budget"]
        assert "fp16" == document["precision"]
        assert {"fp32": 84, "half": 42} == document["weight_bytes"]
        assert [{"precision": "half", "reason": "safe", "count": 4}] == document["nodes"]

    @pytest.mark.parametrize(
        ("text", "note"),
        [
            ("m (float[n, 3] x) => (float[n, 3] y) { y = Softmax<axis = 0>(x) }", "`y` depends on the other rows"),
            ("m (float[1, 3] x) => (float[1, 3] y) { y = Relu(x) }", "the first axis of input `x` is fixed at 1"),
            ("m (float[n, 3] x) => (float[Softmax_dim_0, 3] y) { y = Softmax(x) }", ""),
        ],
    )
    def test_requests_that_are_not_joined(self, demi, tmp_path, text, note):
        """A note has the reason for one request per run, as do the manifest and the JSON."""
        model = onnx.parser.parse_model('<ir_version: 9, opset_import: ["" : 18]>\n' + text)
        onnx.save(model, tmp_path / "m.onnx")
        _, out, err = demi("export", tmp_path / "m.onnx", "--json")
        batch = json.loads(out)["batch"]
        written = open_bundle(tmp_path / "models" / "m").manifest

        assert (f"note: requests are not batched: {note}" in err) is bool(note)
        assert ("not batched" in err) is bool(note)
        assert batch["why_not"].startswith(note)
        assert (not note) is written.batch.joins is bool(batch["proof"])
        if not note:
            assert ("n", 3) == written.outputs[0].shape

    def test_drawn_samples_are_a_warning(self, demi, model):
        """Without samples the figures are only estimates, and a warning names the seed."""
        code, out, err = demi("export", model, "--no-calibrate", "--seed", 7, "--json")

        assert 0 == code
        assert err.startswith("warning: ranges and accuracy are only estimates")
        assert "seed 7" in err
        assert json.loads(out)["samples"]["drawn"]

    @pytest.mark.parametrize(("origin", "warnings"), [(EXAMPLES, 1), ("x.npz", 0)])
    def test_examples_of_the_source_are_a_warning(self, origin, warnings):
        """The one example that a `.pt2` stores is not a measurement to rely on."""
        conversion = SimpleNamespace(comparison=SimpleNamespace(unmeasured=list))
        result = SimpleNamespace(
            samples=Samples(({"x": X[:2]},), origin), fails_here="", warnings=(), conversion=conversion
        )
        words = f"measured on 2 rows only, {EXAMPLES}: give inputs of your own with --sample"

        assert [words] * warnings == list(warnings_of(result))

    def test_lost_values_are_a_note(self, demi, tmp_path):
        """Weights that lose values are named."""
        source = "m (float[n, 2] x) => (float[n, 2] y) <float[2] w = {1.0, 1e-12}> { [it] y = Mul(x, w) }"
        (tmp_path / "m.onnx").write_bytes(text(parse(source)))
        code, _, err = demi("export", tmp_path / "m.onnx", "--no-calibrate")

        assert 0 == code
        assert "note: weights lose values in half precision: `w` (1 become zero, 0 overflow)" in err

    def test_nothing_in_half_is_a_warning(self, demi, model):
        """A model with nothing to gain says so."""
        code, _, err = demi("export", model, "--no-calibrate", "--keep-fp32", "*")

        assert 0 == code
        assert "no node computes in half" in err

    def test_over_budget(self, demi, model, sample, tmp_path):
        """Exit code 1, the output and the way out on stderr, nothing on stdout, no bundle."""
        code, out, err = demi("export", model, "--sample", sample, "--no-calibrate", "--budget", "relative_l2=1e-9")

        assert (1, "") == (code, out)
        assert "error: the half-precision model is not within its accuracy budget" in err
        assert "`y`: relative_l2 is" in err
        assert not (tmp_path / "models").exists()

    def test_the_next_version(self, demi, model, tmp_path):
        """A second export becomes the next version, and a note says so."""
        demi("export", model, "--no-calibrate")
        code, out, err = demi("export", model, "--no-calibrate")

        assert 0 == code
        assert "v2   models/tiny/2" in out
        assert "note: models/tiny holds version 1; this becomes version 2 (--force replaces the newest)\n" in err
        assert [1, 2] == versions(tmp_path / "models" / "tiny")

    def test_force_replaces_the_newest(self, demi, model, tmp_path):
        """`--force` writes no new version, and leaves the older ones alone."""
        for version in (1, 4):
            demi("export", model, "--no-calibrate", "--model-version", version)
        old = [(tmp_path / f"models/tiny/{version}/manifest.json").stat().st_ino for version in (1, 4)]
        code, _, err = demi("export", model, "--no-calibrate", "--force")
        new = [(tmp_path / f"models/tiny/{version}/manifest.json").stat().st_ino for version in (1, 4)]

        assert 0 == code
        assert "this becomes" not in err
        assert [1, 4] == versions(tmp_path / "models" / "tiny")
        assert [True, False] == [before == after for before, after in zip(old, new, strict=True)]

    def test_a_version_that_exists(self, demi, model):
        """A version that is named and exists is an error, whose hint names the ways out."""
        demi("export", model, "--no-calibrate")
        code, _, err = demi("export", model, "--no-calibrate", "--model-version", 1)

        assert 2 == code
        assert "leave out --model-version to write the next version" in err

    def test_measured_plan(self, demi, tmp_path):
        """By default the plan is measured: an overflow is seen, and kept in FP32 where nothing is rescaled."""
        (tmp_path / "m.onnx").write_bytes(text(parse(OVERFLOW)))
        np.savez(tmp_path / "big.npz", x=np.float32([1024.0, 7.0]))
        code, out, _ = demi("export", tmp_path / "m.onnx", "--sample", tmp_path / "big.npz", "--no-rescale")

        assert 0 == code
        assert "overflow" in out

    def test_plan_that_was_edited(self, demi, tmp_path):
        """A plan can be edited and carried out: a node that is set to single stays FP32."""
        (tmp_path / "m.onnx").write_bytes(text(parse(SQUARES)))
        demi("calibrate", tmp_path / "m.onnx", "--no-calibrate")
        plan = json.loads((tmp_path / "m.plan.json").read_text())
        plan["decisions"][1] |= {"precision": "single", "reason": "pinned"}
        (tmp_path / "m.plan.json").write_text(json.dumps(plan))
        code, out, _ = demi("export", tmp_path / "m.onnx", "--plan", "m.plan.json", "--json")

        assert 0 == code
        assert {"pinned", "exponential"} == {group["reason"] for group in json.loads(out)["nodes"]}


class TestCalibrate:
    """`demi calibrate`."""

    def test_files(self, demi, model, sample, tmp_path):
        """The plan and the ranges are written where the user wants them."""
        code, out, err = demi("calibrate", model, "--sample", sample, "-o", "found", "--json")
        document = json.loads(out)

        assert (0, "") == (code, err)
        assert ["tiny.plan.json", "tiny.ranges.json"] == sorted(path.name for path in (tmp_path / "found").iterdir())
        assert "found/tiny.plan.json" == document["plan"]

    def test_output_that_is_a_file(self, demi, model, tmp_path):
        """A file where the folder should be is reported before anything is measured."""
        (tmp_path / "found").write_text("x")

        assert 2 == demi("calibrate", model, "-o", "found")[0]

    @pytest.mark.parametrize("folder", ["file/found", "file"])
    def test_an_output_that_cannot_be_made(self, demi, model, tmp_path, folder):
        """The error comes before anything is measured."""
        (tmp_path / "file").write_text("x")
        code, out, err = demi("calibrate", model, "-o", folder)

        assert (2, "") == (code, out)
        assert "the output folder cannot be created" in err

    def test_work_that_fails_leaves_no_folder(self, demi, model, tmp_path):
        """Folders that were made for results are removed with none in them."""
        assert 2 == demi("calibrate", model, "--sample", "none.npz", "-o", "deep/found")[0]
        assert not (tmp_path / "deep").exists()

    def test_a_device_that_nothing_is_measured_on(self, demi, model):
        """A GPU without --profile would change nothing."""
        code, _, err = demi("calibrate", model, "--device", "cuda")

        assert 2 == code
        assert "add --profile" in err


class TestCheck:
    """`demi check`."""

    def test_sound_bundle(self, demi, tmp_path):
        """Exit code 0, and a table with every figure."""
        code, out, err = demi("check", export(tmp_path))

        assert (0, "") == (code, err)
        for words in ("tiny v1 (fp16)", "relative L2", "within", "passed", "FP32 reference against golden outputs"):
            assert words in out

    def test_bundle_over_budget(self, demi, tmp_path):
        """Exit code 1; the verdict is in the table, the reason on stderr."""
        bundle = export(tmp_path)
        edit_model(bundle, scale_weight("w1_fp16", 50))
        code, out, err = demi("check", bundle)

        assert 1 == code
        assert "OVER" in out
        assert "FAILED" in out
        assert err.startswith("over budget: tiny v1: `y`: relative_l2 is")

    def test_one_bad_bundle_is_enough(self, demi, tmp_path):
        """Every bundle is checked, and all must pass."""
        good, bad = export(tmp_path), export(tmp_path, version=2)
        edit_model(bad, scale_weight("w1_fp16", 50))
        code, out, _ = demi("check", bad, good, "--json")

        assert 1 == code
        assert [False, True] == [check["passed"] for check in json.loads(out)]

    def test_json_of_an_infinity(self, demi, tmp_path):
        """JSON knows no infinity: what is infinite is null, and the verdict says why."""
        bundle = export(tmp_path)
        edit_model(bundle, scale_weight("w2_fp16", np.inf))
        code, out, _ = demi("check", bundle, "--json")
        (document,) = json.loads(out)

        assert 1 == code
        assert document["outputs"][0]["relative_l2"] is None
        assert "NaN or infinite" in document["failures"][0]

    @pytest.mark.parametrize(("x", "count"), [([1.0, -1.0, 9.0], 1), ([-1.0, -2.0, -3.0], 3)])
    def test_not_comparable(self, demi, tmp_path, x, count):
        """Elements that FP32 itself answers with NaN are counted below the table; when they are all, that is a warning."""
        root = "m (float[n] x) => (float[n] y) { [root] a = Sqrt(x) [act] y = Relu(a) }"
        bundle = export(tmp_path, root, inputs={"x": np.float32([1.0, 2.0, 3.0])})
        np.savez(tmp_path / "x.npz", x=np.float32(x))
        code, out, err = demi("check", bundle, "--data", "x.npz", "--markdown", "out.md")

        assert 0 == code
        told = f"`y`: {count} of 3 elements are NaN or infinite in FP32 itself"
        assert 1 == out.count(f"not comparable: {told}")
        assert f"Not comparable: {told}" in (tmp_path / "out.md").read_text()
        warning = "warning: tiny v1: `y`: its accuracy is unknown: FP32 returns no finite value (on x.npz)\n"
        assert err == (warning if count == 3 else "")

    def test_comparable_outputs_have_no_warning(self, demi, tmp_path):
        """The message is absent if FP32 is finite everywhere."""
        assert "not comparable" not in demi("check", export(tmp_path))[1]

    def test_tighter_budget(self, demi, tmp_path):
        """`--budget` replaces the bundle's own."""
        assert 1 == demi("check", export(tmp_path), "--budget", "relative_l2=1e-9")[0]

    def test_a_run_that_ends_early(self, demi, tmp_path):
        """A half model that does not get through its inputs says where to look next."""
        bundle = export(tmp_path, INDEX, inputs={"x": np.float32([1.0]), "table": np.ones((4, 2), np.float32)})
        force_half(bundle)
        np.savez(tmp_path / "far.npz", x=np.float32([2051.0]), table=np.ones((2051, 2), np.float32))
        code, _, err = demi("check", bundle, "--data", "far.npz")

        assert 2 == code
        assert "the half model fails on these inputs: " in err
        assert "look_up" in err
        assert "hint: demi explain names the node that fails" in err

    @pytest.mark.parametrize("name", ["model.onnx", "reference.onnx"])
    def test_an_empty_model(self, demi, tmp_path, name):
        """The error names the bundle and the next step."""
        bundle = export(tmp_path)
        (bundle / name).write_bytes(b"")
        reseal(bundle)
        code, out, err = demi("check", bundle)

        assert (2, "") == (code, out)
        assert str(bundle) in err
        assert "hint: export the model again" in err

    def test_a_device_that_is_not_there(self, demi, tmp_path):
        """Nothing falls back to the emulator: the error names the device and what to install, exit code 3."""
        code, out, err = demi("check", export(tmp_path), "--device", "cuda:1")

        assert (3, "") == (code, out)
        assert "error: `cuda:1` was requested, but the installed ONNX Runtime is built without CUDA" in err
        assert "demi-inference[gpu]" in err

    def test_the_cpu_is_the_emulator(self, demi, tmp_path):
        """`--device cpu` is the default."""
        bundle = export(tmp_path)

        assert demi("check", bundle) == demi("check", bundle, "--device", "cpu")

    def test_no_device(self, demi, tmp_path):
        """An unknown device is a usage error."""
        code, _, err = demi("check", export(tmp_path), "--device", "tpu")

        assert 2 == code
        assert "unknown device `tpu`" in err

    def test_damaged_bundle(self, demi, tmp_path):
        """A damaged bundle is bad input, not a failed check: exit code 2."""
        bundle = export(tmp_path)
        (bundle / "model.onnx").write_bytes(b"x")
        code, out, err = demi("check", bundle)

        assert (2, "") == (code, out)
        assert "`model.onnx` is not the file that was written" in err


IN_ONNXRUNTIME = ("--runtime", "onnxruntime")
"""Nothing has to be proved then."""


class TestBench:
    """`demi bench`."""

    def test_table(self, demi, tmp_path):
        """Both models at every batch, and a note that half is not faster on a CPU."""
        code, out, err = demi("bench", export(tmp_path), *IN_ONNXRUNTIME, "--batch", "1,4", "--seconds", "0")

        assert 0 == code
        assert "tiny v1 on cpu, alternating" in out
        assert 2 == out.count("fp16  ")
        for words in ("model file", "peak memory", "outputs against FP32", "within"):
            assert words in out
        assert err.startswith("note: on a CPU, ONNX Runtime has few half kernels")

    def test_json(self, demi, tmp_path):
        """For machines: two latencies for each batch."""
        code, out, _ = demi("bench", export(tmp_path), *IN_ONNXRUNTIME, "--batch", "1,4", "--seconds", "0", "--json")
        document = json.loads(out)

        assert 0 == code
        assert [1, 4] == [entry["half"]["batch"] for entry in document["batches"]]
        assert ("cpu", "fp16") == (document["device"], document["precision"])

    @pytest.mark.skipif(openvino_version() is None, reason="OpenVINO is not installed")
    def test_openvino(self, demi, tmp_path, monkeypatch):
        """The CPU's own errors, and the emulator's beside them."""
        monkeypatch.setenv("DEMI_ENGINE_KEY", str(tmp_path / "key"))
        code, out, err = demi("bench", export(tmp_path), "--batch", "1", "--seconds", "0", "--runtime", "openvino")

        if code:
            assert (3, True) == (code, "cannot be served by OpenVINO" in err)
            return
        assert "outputs against FP32, computed on cpu by OpenVINO" in out
        assert "the emulator predicts for `y`: " in out

    def test_openvino_on_a_gpu(self, demi, tmp_path):
        """It runs on a CPU here."""
        code, _, err = demi("bench", export(tmp_path), "--device", "cuda", "--runtime", "openvino")

        assert (2, True) == (code, "OpenVINO runs on a CPU here" in err)

    def test_sizes_memory_and_errors(self, demi, tmp_path):
        """JSON has everything the tables have: sizes, memory, and every output against FP32."""
        _, out, _ = demi("bench", export(tmp_path), *IN_ONNXRUNTIME, "--batch", "1", "--seconds", "0", "--json")
        document = json.loads(out)

        assert document["file_bytes"]["half"] > 0
        assert {"loaded_bytes", "peak_bytes", "device_bytes", "own_bytes"} == set(document["memory"]["half"])
        assert ["y"] == [diff["output"] for diff in document["outputs"]]
        assert document["within_budget"]

    def test_html(self, demi, tmp_path):
        """`--html` writes a page beside what is printed."""
        code, out, _ = demi(
            "bench", export(tmp_path), *IN_ONNXRUNTIME, "--batch", "1", "--seconds", "0", "--html", "bench.html"
        )

        assert 0 == code
        assert "alternating" in out
        assert (tmp_path / "bench.html").read_text().startswith("<!doctype html>")

    @pytest.mark.parametrize("path", ["no/bench.html", "."])
    def test_html_that_cannot_be_written(self, demi, tmp_path, path):
        """The error comes before anything is timed."""
        code, out, err = demi(
            "bench", export(tmp_path), *IN_ONNXRUNTIME, "--batch", "1", "--seconds", "0", "--html", path
        )

        assert (2, "") == (code, out)
        assert "the file cannot be written" in err

    def test_html_without_its_packages(self, demi, tmp_path, monkeypatch):
        """Without the packages that draw it nothing is timed, and the extra is named: exit code 3."""
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        code, out, err = demi(
            "bench", export(tmp_path), *IN_ONNXRUNTIME, "--batch", "1", "--seconds", "0", "--html", "bench.html"
        )

        assert (3, "") == (code, out)
        assert "demi-inference[report]" in err

    def test_fixed_batch(self, demi, tmp_path):
        """A bundle with a fixed batch is timed at that size."""
        fixed = MLP.replace("batch", "6")
        _, out, _ = demi(
            "bench", export(tmp_path, fixed), *IN_ONNXRUNTIME, "--batch", "1,4", "--seconds", "0", "--json"
        )

        assert [6] == [entry["fp32"]["batch"] for entry in json.loads(out)["batches"]]

    def test_without_a_reference(self, demi, tmp_path):
        """There is nothing to compare with."""
        code, out, err = demi("bench", export(tmp_path, reference=False))

        assert (2, "") == (code, out)
        assert "hint: export it without --no-reference" in err

    def test_bf16_on_the_cpu(self, demi, tmp_path, model):
        """ONNX Runtime cannot run BF16 here: exit code 3."""
        demi("export", model, "--bf16", "--no-calibrate", "--budget", "relative_l2=0.1", "-o", "narrow")
        code, _, err = demi("bench", "narrow", *IN_ONNXRUNTIME)

        assert 3 == code
        assert "--device cuda" in err


class TestExplain:
    """`demi explain`."""

    def test_sound_bundle(self, demi, tmp_path):
        """A headline, every output, and a table of the most important nodes."""
        code, out, err = demi("explain", export(tmp_path))

        assert (0, "") == (code, err)
        assert out.startswith("no node stands out: rounding errors add up to")
        for words in ("output `y`:", "within its budget", "enters", "adds", "leaves", "second", "safe"):
            assert words in out

    def test_damaged_bundle(self, demi, tmp_path):
        """A diagnosis is not a verdict: the node is named first, and the exit code is 0."""
        bundle = export(tmp_path)
        edit_model(bundle, scale_weight("w1_fp16", 50))
        code, out, _ = demi("explain", bundle)

        assert 0 == code
        assert out.startswith("`first` (MatMul) breaks the outputs: its weight `w1_fp16`")
        assert "over its budget" in out

    def test_json_has_every_node(self, demi, tmp_path):
        """For machines: all nodes in order, however few are shown."""
        _, out, _ = demi("explain", export(tmp_path), "--top", 1, "--json")
        document = json.loads(out)

        assert 6 == len(document["nodes"])
        assert {"enters", "adds", "leaves", "non_finite"} <= set(document["nodes"][0])
        assert document["within_budget"]

    def test_own_inputs(self, demi, tmp_path):
        """The inputs that went wrong in production."""
        np.savez(tmp_path / "bad.npz", x=X * 1e5)
        _, out, _ = demi("explain", export(tmp_path), "--input", tmp_path / "bad.npz")

        assert "`x_to_fp16` (Cast, for `first`) breaks the outputs: its output reaches" in out

    @pytest.mark.parametrize("name", ["model.onnx", "reference.onnx"])
    @pytest.mark.parametrize("other", [b"", text(parse(SQUARES))], ids=["empty", "another"])
    def test_a_model_of_another_bundle(self, demi, tmp_path, name, other):
        """Though a manifest vouches for it, it has not the tensors that the manifest names."""
        bundle = export(tmp_path)
        (bundle / name).write_bytes(other)
        reseal(bundle)
        code, out, err = demi("explain", bundle)

        assert (2, "") == (code, out)
        assert f"of `{name}` are not those in the manifest: " in err
        assert "hint: export the model again" in err

    def test_a_run_that_ends_early(self, demi, tmp_path):
        """The node where half does not get through is a line and a row, in its place; the command has done its work."""
        few = {"x": np.float32([1.0]), "table": np.ones((4, 2), np.float32)}
        bundle = export(tmp_path, INDEX, inputs=few)
        force_half(bundle)
        np.savez(tmp_path / "far.npz", x=np.float32([2051.0]), table=np.ones((2051, 2), np.float32))
        code, out, err = demi("explain", bundle, "--input", "far.npz")

        assert (0, "") == (code, err)
        assert "then `look_up` (Gather) fails in half: indices element out of data bounds, idx=2052" in out
        assert "output `y`: inf relative L2, over its budget" in out
        assert "fails" in next(line for line in out.splitlines() if line.startswith(" look_up"))
        found = json.loads(demi("explain", bundle, "--input", "far.npz", "--json")[1])
        assert ("look_up", False) == (found["failure"]["node"], found["within_budget"])

    def test_bf16(self, demi, tmp_path, model):
        """BF16 is explained on a machine without BF16."""
        demi("export", model, "--bf16", "--no-calibrate", "--no-report", "--budget", "relative_l2=0.1", "-o", "narrow")

        assert 0 == demi("explain", "narrow")[0]

    def test_without_a_reference(self, demi, tmp_path):
        """There is nothing to compare with."""
        code, out, err = demi("explain", export(tmp_path, reference=False))

        assert (2, "") == (code, out)
        assert "--no-reference" in err
