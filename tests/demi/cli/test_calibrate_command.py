"""`demi calibrate`, and `demi export --plan` with what it wrote."""

import json

import numpy as np
import onnx_ir as ir
import pytest

from demi.calibration.profile import read_profile
from demi.cli.main import main
from demi.plan import read_plan
from tests.exporter.planning.helpers import floats
from tests.models import MLP, OVERFLOW, parse


@pytest.fixture
def write(tmp_path):
    """Writes a model in text and one set of inputs; returns their paths."""

    def files(source, **arrays):
        model, sample = tmp_path / "small.onnx", tmp_path / "inputs.npz"
        ir.save(parse(source), model)
        np.savez(sample, **arrays)
        return str(model), str(sample)

    return files


@pytest.fixture
def demi(capsys):
    """Runs a command; returns its exit code and what it printed."""

    def command(*arguments):
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return command


def nothing_to_measure():
    """A function that has no sets of inputs to give."""
    return iter(())


class TestCalibrate:
    """The ranges and the plan of a model, without converting it."""

    def test_a_file_that_cannot_be_written(self, write, demi, tmp_path):
        """The error comes before anything is measured, and no partial result is left."""
        model, sample = write(MLP, x=np.ones((2, 4), np.float32))
        (tmp_path / "out" / "small.ranges.json").mkdir(parents=True)
        code, out, err = demi("calibrate", model, "--sample", sample, "-o", tmp_path / "out")

        assert (2, "") == (code, out)
        assert "the file cannot be written: it is a folder" in err
        assert ["small.ranges.json"] == [path.name for path in (tmp_path / "out").iterdir()]

    @pytest.mark.parametrize("sample", ["", f"{__name__}:nothing_to_measure"])
    def test_files_that_are_not_samples(self, write, demi, tmp_path, sample):
        """Samples that were asked for and do not come are not drawn instead."""
        model, _ = write(MLP)
        code, _, err = demi("calibrate", model, "--sample", sample, "-o", tmp_path / "out")

        assert 2 == code
        assert "samples" in err
        assert not (tmp_path / "out").exists()

    def test_nan_among_the_samples(self, write, demi, tmp_path):
        """Ranges that were measured on rows of NaN are reported, as `demi export` does."""
        model, sample = write(MLP, x=np.float32([[1, 2, 3, 4], [np.nan, 0, 0, 0]]))
        _, _, err = demi("calibrate", model, "--sample", sample, "-o", tmp_path / "out")

        assert f"warning: input `x` holds NaN or infinity in 1 of 2 rows of {sample}" in err

    def test_writes_plan_and_ranges(self, write, demi, tmp_path):
        """Both files carry the model's name; the summary says what matters and where they are."""
        model, sample = write(OVERFLOW, x=np.float32([1024, 1]))

        code, out, err = demi("calibrate", model, "--sample", sample, "-o", tmp_path / "out", "--no-rescale")

        assert 0 == code
        plan, ranges = (tmp_path / "out" / f"small.{kind}.json" for kind in ("plan", "ranges"))
        assert "max 102,400 on `big`" == read_plan(plan)["grow"].evidence
        assert 102_400.0 == read_profile(ranges)["big"].high
        assert str(plan) in out
        assert str(ranges) in out
        assert "overflow" in out
        assert "guess" not in err

    def test_drawn_inputs_are_a_guess(self, write, demi, tmp_path):
        """Without samples it works, and warns."""
        model, _ = write(MLP, x=floats(2, 4))

        code, _, err = demi("calibrate", model, "-o", tmp_path, "--seed", "7")

        assert 0 == code
        assert "warning: ranges are only estimates" in err
        assert "(seed 7)" in err

    def test_json(self, write, demi, tmp_path):
        """`--json` prints one document that names both files, and nothing else."""
        model, sample = write(OVERFLOW, x=np.float32([1024, 1]))

        _, out, _ = demi("calibrate", model, "--sample", sample, "-o", tmp_path, "--json", "--no-rescale")

        document = json.loads(out)
        assert [{"precision": "single", "reason": "overflow", "count": 2}] == document["nodes"]
        assert document["plan"].endswith("small.plan.json")
        assert document["ranges"].endswith("small.ranges.json")
        assert "fp16" == document["precision"]
        assert 0.0 == document["predicted_relative_l2"]["y"]

    def test_without_calibration(self, write, demi, tmp_path):
        """`--no-calibrate` lets the operator list decide: nothing is measured, and no range written."""
        source = "m (float[n, 4] x) => (float[n, 4] y) { [it] a = Exp(x) [after] y = Tanh(a) }"
        model, sample = write(source, x=floats(2, 4))

        demi("calibrate", model, "--sample", sample, "-o", tmp_path, "--no-calibrate")

        reasons = [decision.reason.value for decision in read_plan(tmp_path / "small.plan.json").decisions.values()]
        assert ["exponential", "safe"] == reasons
        assert {} == read_profile(tmp_path / "small.ranges.json").ranges

    def test_flags_reach_the_plan(self, write, demi, tmp_path):
        """`--bf16`, `--keep-fp32` and `--budget` do."""
        model, sample = write(MLP, x=floats(64, 4))

        demi(
            "calibrate",
            model,
            "--sample",
            sample,
            "-o",
            tmp_path,
            "--bf16",
            "--keep-fp32",
            "first",
            "--budget",
            "relative_l2=5e-2",
        )

        plan = read_plan(tmp_path / "small.plan.json")
        assert "bf16" == plan.precision
        assert "--keep-fp32 first" == plan["first"].evidence

    def test_costs(self, write, demi, tmp_path):
        """A device on which half is never faster keeps all in FP32."""
        model, sample = write(MLP, x=floats(8, 4))
        costs = tmp_path / "device.json"
        costs.write_text('{"seconds": {"first": [2, 1], "bias": [2, 1], "act": [2, 1], "second": [2, 1]}}')

        demi("calibrate", model, "--sample", sample, "-o", tmp_path, "--costs", costs)

        assert 0 == read_plan(tmp_path / "small.plan.json").half_nodes

    @pytest.mark.parametrize(
        ("content", "problem"),
        [
            ("{", "truncated"),
            ('{"bandwidth": "fast"}', "Expected `float`"),
            (None, "No such file"),
            ('{"bandwith": 1e12}', "unknown field `bandwith`"),
            ('{"bandwidth": 0}', "`bandwidth` is 0, which is not above zero"),
            ('{"launch_s": -1}', "a time is below zero"),
            ('{"seconds": {"first": [1, -1]}}', "a time is below zero"),
        ],
    )
    def test_damaged_costs(self, write, demi, tmp_path, content, problem):
        """A cost table that cannot be read is an error with the fields it may have."""
        model, sample = write(MLP, x=floats(8, 4))
        costs = tmp_path / "device.json"
        if content is not None:
            costs.write_text(content)

        code, _, err = demi("calibrate", model, "--sample", sample, "-o", tmp_path, "--costs", costs)

        assert 2 == code
        assert problem in err
        assert "hint: write JSON with bandwidth, half_flops, single_flops, launch_s, rows, seconds" in err

    def test_output_that_is_a_file(self, write, demi, tmp_path):
        """The output is a folder, or nothing yet."""
        model, sample = write(MLP, x=floats(8, 4))

        code, _, err = demi("calibrate", model, "--sample", sample, "-o", sample)

        assert 2 == code
        assert "the output folder cannot be created" in err

    def test_budget_of_an_unknown_output(self, write, demi, tmp_path):
        """A limit for an output that is not there is reported before anything is searched."""
        model, sample = write(MLP, x=floats(8, 4))

        code, _, err = demi("calibrate", model, "--sample", sample, "-o", tmp_path, "--budget", "z:max_abs=1")

        assert 2 == code
        assert "the budget names output `z`" in err


class TestPlan:
    """`demi export --plan`."""

    def exported(self, demi, tmp_path, model, sample, *options):
        """The result of an export that carries out the calibrated plan."""
        return demi(
            "export",
            model,
            "--sample",
            sample,
            "-o",
            tmp_path / "models" / "small",
            "--plan",
            tmp_path / "small.plan.json",
            *options,
        )

    def edit(self, tmp_path, edit):
        """Change the plan file as a person would."""
        path = tmp_path / "small.plan.json"
        document = json.loads(path.read_text())
        edit(document)
        path.write_text(json.dumps(document))

    def test_an_edited_plan_is_carried_out(self, write, demi, tmp_path):
        """The bundle contains the changes made by hand."""
        model, sample = write(MLP, x=floats(8, 4))
        demi("calibrate", model, "--sample", sample, "-o", tmp_path)
        self.edit(tmp_path, lambda document: document["decisions"][1].update(precision="single", reason="pinned"))

        code, _, _ = self.exported(demi, tmp_path, model, sample)

        bundle = tmp_path / "models" / "small" / "1"
        assert 0 == code
        assert ["half", "single", "half", "half"] == [
            decision.precision.value for decision in read_plan(bundle / "plan.json").decisions.values()
        ]
        assert 4 == sum(node.op_type == "Cast" for node in ir.load(bundle / "model.onnx").graph)

    def test_a_plan_over_the_budget(self, write, demi, tmp_path):
        """A plan that breaks the model ends with exit code 1 and leaves nothing behind."""
        model, sample = write(OVERFLOW, x=np.float32([1024, 1]))
        demi("calibrate", model, "--sample", sample, "-o", tmp_path, "--no-rescale")
        self.edit(tmp_path, lambda document: [decision.update(precision="half") for decision in document["decisions"]])

        code, _, err = self.exported(demi, tmp_path, model, sample, "--no-rescale")

        assert 1 == code
        assert "`y`: 1 of 2 elements are NaN or infinite" in err
        assert not (tmp_path / "models" / "small" / "1").exists()

    def test_a_plan_of_another_model(self, write, demi, tmp_path):
        """Names that the model does not have are an error with a hint."""
        model, sample = write(OVERFLOW, x=np.float32([1024, 1]))
        demi("calibrate", model, "--sample", sample, "-o", tmp_path)
        model, sample = write(MLP, x=floats(8, 4))

        code, _, err = self.exported(demi, tmp_path, model, sample)

        assert 2 == code
        assert "the plan names `grow`, which the model does not have" in err
        assert "hint: " in err

    @pytest.mark.parametrize(
        ("edit", "problem"),
        [
            (lambda document: document.update(schema=99), "it has schema 99"),
            (lambda document: document.update(extra=1), "unknown field `extra`"),
            (lambda document: document["decisions"][0].update(precision="quarter"), "Invalid enum value 'quarter'"),
            (lambda document: document["decisions"].append(document["decisions"][0]), "it names `first` twice"),
        ],
        ids=["schema", "field", "precision", "twice"],
    )
    def test_a_damaged_plan(self, write, demi, tmp_path, edit, problem):
        """A plan that cannot be read ends with exit code 2, what is wrong, where, and what to do."""
        model, sample = write(MLP, x=floats(8, 4))
        demi("calibrate", model, "--sample", sample, "-o", tmp_path)
        self.edit(tmp_path, edit)

        code, _, err = self.exported(demi, tmp_path, model, sample)

        assert 2 == code
        assert problem in err
        assert "small.plan.json" in err
        assert "hint: " in err
