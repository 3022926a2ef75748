"""The commands report the truth, and never ignore an option silently."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from demi.cli.main import main
from demi.errors import DEFECT
from tests.models import MLP, parse, text

HALF = "m (float16[n, 4] x) => (float16[n, 4] y) { [act] y = Sigmoid(x) }"
DOUBLE = "m (double[n, 4] x) => (double[n, 4] y) { [act] y = Sigmoid(x) }"
CHOICE = """choice (float[n, 3] x) => (int64[n] best)
<float[3, 3] w = {1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0}>
{ [scores] scores = MatMul(x, w)
  [choose] best = ArgMax <axis = 1, keepdims = 0> (scores) }"""
WHOLE = "m (int64[n, 4] x) => (int64[n, 4] y) { [act] y = Neg(x) }"
RELU = "m (float[n, 4] x) => (float[n, 4] y) { [act] y = Relu(x) }"
NO_INPUTS = "m () => (float[2] y) <float[2] a = {1.0, 2.0}> { [act] y = Sigmoid(a) }"
LOGARITHM = "m (float[n] x) => (float[n] y) { [it] a = Mul(x, x) y = Sqrt(x) }"


@pytest.fixture
def demi(tmp_path, monkeypatch, capsys):
    """Runs a command in an empty folder; returns (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        code = main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return run


def onnx_file(source: str, name: str = "m.onnx") -> Path:
    """The model in a file of the working folder."""
    Path(name).write_bytes(text(parse(source)))
    return Path(name)


class TestHeadline:
    """The table's title, and the warning of a model with nothing to gain."""

    @pytest.mark.parametrize(
        ("source", "title", "warning"),
        [
            (HALF, "m: FP16, unchanged", "none computes in FP32, its floats are FP16"),
            (DOUBLE, "m: FP64, unchanged", "none computes in FP32, its floats are FP64"),
            (WHOLE, "m: only integers, unchanged", "none computes in FP32, it has no floats"),
        ],
        ids=["half", "double", "integers"],
    )
    def test_nothing_to_convert(self, demi, source: str, title: str, warning: str):
        """The source's types are named, and that the model is unchanged."""
        code, out, err = demi("export", onnx_file(source))

        assert 0 == code
        assert title in out
        assert f"warning: no node computes in half: {warning}" in err
        assert "mixed" not in out

    def test_all_kept(self, demi):
        """A model whose nodes are all kept is left in FP32, and the warning says by whom."""
        _, out, err = demi("export", onnx_file(RELU), "--keep-fp32", "act")

        assert "m: FP32, unchanged" in out
        assert "warning: no node computes in half: --keep-fp32 keeps all of them" in err

    def test_a_choice_by_close_numbers_keeps_fp32(self, demi):
        """A model that chooses by numbers too close to round stays FP32, and the warning says what may be done."""
        np.savez("x.npz", x=np.float32([[1.0, 1.0006, 0.5]]))
        _, _, err = demi("export", onnx_file(CHOICE), "--sample", "x.npz")

        assert "it chooses by numbers too close together to be rounded" in err
        assert "--force-half" in err

    def test_float32(self, demi):
        """An ordinary model is FP32 before and mixed after."""
        assert "m: FP32 -> mixed fp16" in demi("export", onnx_file(MLP))[1]


class TestNotComparable:
    """Answers that FP32 itself does not give."""

    def test_nan_in_fp32(self, demi):
        """A root of a negative number is NaN in both precisions: it is counted, but not as correct."""
        np.savez("x.npz", x=np.float32([4.0, -1.0, 9.0]))
        code, out, err = demi("export", onnx_file(LOGARITHM), "--sample", "x.npz")

        assert 0 == code
        assert "1 of 3 not comparable" in out
        assert "warning: `y`: 1 of 3 elements are NaN or infinite in FP32 itself" in err
        assert "not comparable: `y`: 1 of 3 elements" in demi("check", "models/m")[1]

    def test_nan_among_the_samples(self, demi):
        """A row of NaN among good rows is reported."""
        np.savez("x.npz", x=np.float32([[1, 2, 3, 4], [np.nan, 0, 0, 0], [5, 6, 7, 8]]))
        _, _, err = demi("export", onnx_file(MLP), "--sample", "x.npz")

        assert "warning: input `x` holds NaN or infinity in 1 of 3 rows of x.npz" in err

    def test_good_samples_are_no_warning(self, demi):
        """Finite samples cause no warning."""
        np.savez("x.npz", x=np.ones((3, 4), np.float32))

        assert "warning" not in demi("export", onnx_file(MLP), "--sample", "x.npz")[2]


def test_casts_of_samples_are_reported(demi):
    """Samples of another type than the model's are cast, and the note says from what to what."""
    np.savez("s.npz", x=np.random.default_rng(0).standard_normal((4, 4)))

    code, _, err = demi("export", onnx_file(MLP), "--sample", "s.npz", "--no-report")

    assert 0 == code
    assert "note: the samples of `x` are float64, and became float32" in err


class TestOptions:
    """Options that contradict each other or mean nothing."""

    @pytest.mark.parametrize(
        "option",
        [
            ("--opset", "20"),
            ("--output-names", "a"),
            ("--input", "x:float32[2,4]"),
            ("--model", "a.b:c"),
            ("--task", "features"),
            ("--trust-pickle",),
        ],
        ids=lambda option: option[0],
    )
    @pytest.mark.parametrize("command", ["export", "calibrate"])
    def test_options_of_other_sources(self, demi, command: str, option: tuple[str, ...]):
        """An ONNX file leaves none of them open."""
        code, _, err = demi(command, onnx_file(MLP), *option)

        assert 2 == code
        assert f"error: {option[0]} means nothing for an ONNX file" in err

    def test_keep_and_force(self, demi):
        """A node cannot be both; the error names it."""
        code, _, err = demi("export", onnx_file(MLP), "--keep-fp32", "first", "--force-half", "first")

        assert 2 == code
        assert "error: `first` is requested in FP32" in err

    def test_limit_given_twice(self, demi):
        """Which of the two would hold?"""
        budget = ("--budget", "relative_l2=1", "--budget", "relative_l2=2")
        code, _, err = demi("export", onnx_file(MLP), *budget)

        assert 2 == code
        assert "the limit for relative_l2 is given twice" in err

    def test_limits_of_two_outputs_are_no_contradiction(self, demi):
        """One for all, and another for one."""
        budget = ("--budget", "relative_l2=1", "--budget", "y:relative_l2=2")

        assert 0 == demi("export", onnx_file(MLP), *budget)[0]

    @pytest.mark.parametrize("value", ["-1", "nan", "inf", "soon"])
    @pytest.mark.parametrize("flag", [("export", "--search-seconds"), ("bench", "--seconds")], ids=" ".join)
    def test_seconds(self, demi, flag: tuple[str, str], value: str):
        """Time goes forward, and ends."""
        code, _, err = demi(flag[0], "m.onnx", f"{flag[1]}={value}")

        assert 2 == code
        assert f"`{value}` is not a number of seconds" in err

    def test_inside_a_bundle(self, demi):
        """A version's folder cannot contain another model."""
        model = onnx_file(MLP)
        demi("export", model, "-o", "models/m")
        code, _, err = demi("export", model, "-o", "models/m/1")

        assert 2 == code
        assert "the output would lie inside the bundle" in err
        assert not Path("models/m/1/1").exists()


class TestFolderOption:
    """`--hf DIR`, another spelling of a transformers folder."""

    def test_hf_reads_a_folder_like_the_model(self, demi):
        """A folder without config.json is refused as it would be without `--hf`."""
        Path("empty").mkdir()

        assert demi("export", "empty") == demi("export", "--hf", "empty")

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ((), "no model was given"),
            (("m.onnx", "--hf", "."), "both a model and --hf were given"),
            (("--hf", "m.onnx"), "folder"),
        ],
    )
    def test_one_model(self, demi, arguments: tuple[str, ...], message: str):
        """Neither none nor two, and a folder."""
        code, _, err = demi("calibrate", *arguments)

        assert 2 == code
        assert message in err


def test_a_model_without_inputs_is_checked(demi):
    """Its golden sets hold outputs alone, and its bundle passes."""
    code, _, err = demi("export", onnx_file(NO_INPUTS), "--no-optimize")
    assert 0 == code, err
    code, out, _ = demi("check", "models/m")

    assert 0 == code
    assert "passed" in out


def test_rows_of_nothing(demi):
    """A model whose inputs hold no element is exported and checked like any other."""
    code, _, err = demi("export", onnx_file("m (float[0, 4] x) => (float[0, 4] y) { y = Relu(x) }"))

    assert 0 == code, err
    assert Path("models/m/1/manifest.json").exists()
    assert 0 == demi("check", "models/m")[0]


def test_a_folder_without_a_name(demi):
    """`-o ""`, from a variable that was not set, does not mean the working folder."""
    code, _, err = demi("export", onnx_file(RELU), "-o", "")

    assert 2 == code
    assert "the name of the folder is empty" in err
    assert [Path("m.onnx")] == list(Path().iterdir())


class TestDefects:
    """Unforeseen exceptions."""

    @pytest.fixture
    def broken(self, monkeypatch):
        """`demi check` with a defect in it."""

        def defect(*_):
            raise ZeroDivisionError("float division by zero\nand more")

        monkeypatch.setattr("demi.cli.check.run", defect)

    def test_short_message(self, broken, demi):
        """One line, a plea, no trace, and an exit code that means nothing else."""
        code, out, err = demi("check", "x")

        assert (DEFECT, "") == (code, out)
        assert 70 == DEFECT
        assert err.startswith("error: ZeroDivisionError: float division by zero\nhint: this is a defect in Demi")
        assert "Traceback" not in err

    def test_trace_with_verbose(self, broken, demi):
        """`--verbose` has it all."""
        code, _, err = demi("check", "x", "--verbose")

        assert DEFECT == code
        assert "Traceback" in err
        assert "and more" in err
