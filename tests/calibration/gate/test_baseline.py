"""The baseline's file: written whole, read strictly, and its tolerances are what it says."""

import json

import numpy as np
import pytest

from demi.calibration.gate.baseline import (
    ERROR_FLOOR,
    Entry,
    StoredMeasure,
    decode_plan,
    encode_plan,
    parse_tolerances,
    read_baseline,
    require_unique_names,
    stored_measure,
    write_baseline,
)
from demi.calibration.gate.measure import Measure, measure_of
from demi.errors import InputError
from demi.plan import Decision, Precision, Reason, make_plan

ROWS = np.array([[1.0, 2.0], [0.123456789, 4.0]])
MEASURE = measure_of("relative_l2", "root_ratio", ROWS, output="y")
PLAN = make_plan(
    "fp16",
    [
        Decision("b", "MatMul", Precision.HALF, Reason.SAFE),
        Decision("a", "Exp", Precision.SINGLE, Reason.EXPONENTIAL),
    ],
)


def entry(*measures, plan=PLAN):
    """An entry with these measures."""
    return Entry(1, "fp16", "x.npz", 2, "00", encode_plan(plan), list(measures))


@pytest.fixture
def written(tmp_path):
    """A baseline's file with one model."""
    path = tmp_path / "baseline.json"
    write_baseline(path, {"tiny": entry(stored_measure(MEASURE, None, None))})
    return path


class TestFile:
    """Written and read again."""

    def test_what_is_written_is_read(self, written):
        """Rows to seven digits, the plan in order, a name with anything in it."""
        found = read_baseline(written).entry("tiny", "fp16")

        assert np.allclose(ROWS, found.measures[0].rows, rtol=1e-6)
        assert ("relative_l2", "y", "10%") == (
            found.measures[0].name,
            found.measures[0].output,
            found.measures[0].tolerance,
        )
        assert ["b", "a"] == list(decode_plan(found, written).decisions)

    def test_a_row_is_a_line(self, written):
        """So that a change of the file can be read."""
        assert "            [1.0, 2.0],\n" in written.read_text()

    def test_names_are_left_alone(self, tmp_path):
        """A node whose name looks like a row stays as it is."""
        odd = make_plan("fp16", [Decision("[ 1,  2 ]", "Exp", Precision.HALF, Reason.SAFE)])
        write_baseline(tmp_path / "b.json", {"tiny": entry(plan=odd)})

        assert ["[ 1,  2 ]"] == list(read_baseline(tmp_path / "b.json").models["tiny"].plan)

    def test_a_new_one_is_whole_or_absent(self, tmp_path):
        """Where it cannot be written, nothing is left."""
        with pytest.raises(InputError, match="cannot be written"):
            write_baseline(tmp_path / "none" / "b.json", {})

        assert [] == list(tmp_path.iterdir())


class TestRefused:
    """Files that are no baseline of this model."""

    @pytest.mark.parametrize(
        ("edit", "told"),
        [
            (lambda file: file | {"schema": 2}, "it has schema 2; this Demi reads schema 1"),
            (lambda file: [file], "it has schema None"),
            (lambda file: file | {"more": 1}, "unknown field `more`"),
            (lambda file: spoil(file, tolerance="many"), "relative_l2 of `tiny`: `many` is not a tolerance"),
            (lambda file: spoil(file, tolerance=-1.0), "is not a tolerance"),
            (lambda file: spoil(file, tolerance="inf%"), "is not a tolerance"),
            (lambda file: spoil(file, formula="mean"), "unknown formula `mean`"),
            (lambda file: spoil(file, rows=[[1.0], [1.0, 2.0]]), "its rows differ in length"),
            (lambda file: spoil(file, rows=[["x"]]), "Expected `float`"),
            (lambda file: spoil(file, value=None), "Expected `float`"),
        ],
    )
    def test_a_file_that_is_wrong(self, written, edit, told):
        """The field is named, and how to get a right one."""
        written.write_text(json.dumps(edit(json.loads(written.read_text()))))
        with pytest.raises(InputError, match="cannot be read") as caught:
            read_baseline(written)

        assert told in str(caught.value)
        assert "--write-baseline" in str(caught.value)

    def test_a_reason_nobody_knows(self, written):
        """A plan with an unknown reason is told with its node."""
        written.write_text(written.read_text().replace("half safe", "half lucky"))
        with pytest.raises(InputError, match="the plan has `half lucky` for `b`"):
            read_baseline(written)

    @pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe", b"[" * 10_000])
    def test_garbage(self, tmp_path, data):
        """What is no JSON is told."""
        (tmp_path / "b.json").write_bytes(data)
        with pytest.raises(InputError, match="cannot be read"):
            read_baseline(tmp_path / "b.json")

    def test_no_file(self, tmp_path):
        """How to make one."""
        with pytest.raises(InputError, match=r"no such baseline[\s\S]*--write-baseline"):
            read_baseline(tmp_path / "none.json")

    def test_another_model(self, written):
        """The models that it holds are named."""
        with pytest.raises(InputError, match=r"holds no model `other`[\s\S]*it holds tiny"):
            read_baseline(written).entry("other", "fp16")

    def test_another_precision(self, written):
        """A bf16 bundle is not compared with an fp16 baseline."""
        with pytest.raises(InputError, match="is for fp16, but the bundle is bf16"):
            read_baseline(written).entry("tiny", "bf16")

    def test_another_kind_of_device(self, written):
        """What an emulator answered is not compared with a GPU; which GPU it is does not matter."""
        with pytest.raises(InputError, match="measured on cpu, but this check runs on cuda:0") as caught:
            read_baseline(written).entry("tiny", "fp16", "cuda:0")
        assert "--device cpu" in caught.value.hint
        text = written.read_text().replace('"version"', '"device": "cuda:0", "version"')
        written.write_text(text)

        assert "cuda:0" == read_baseline(written).entry("tiny", "fp16", "cuda:1").device

    def test_one_model_twice(self):
        """Two bundles of one name cannot both be its baseline."""
        with pytest.raises(InputError, match="two bundles are called `a`"):
            require_unique_names(["a", "b", "a"])


def spoil(file, **fields):
    """The file with other fields in its first measure."""
    file["models"]["tiny"]["measures"][0] |= fields
    return file


class TestTolerances:
    """How much worse a measure may become."""

    def test_a_share_of_what_it_was(self):
        """10% of 0.5; a number stands for itself."""
        assert 0.05 == pytest.approx(StoredMeasure("top1", 0.5, "10%").allowed)
        assert 0.1 == StoredMeasure("top1", 0.5, 0.1).allowed

    def test_an_error_of_nothing(self):
        """A relative L2 of zero may become what other machines make of zero."""
        assert ERROR_FLOOR == StoredMeasure("relative_l2", 0.0, "10%").allowed

    def test_what_is_given_comes_first(self):
        """Then what the baseline stated before, then the default; a metric of one's own has 1%."""
        known = entry(StoredMeasure("relative_l2", 1.0, "30%", "y"))

        assert "20%" == stored_measure(MEASURE, "20%", known).tolerance
        assert "30%" == stored_measure(MEASURE, None, known).tolerance
        assert "10%" == stored_measure(MEASURE, None, entry()).tolerance
        assert "1%" == stored_measure(Measure("own:metric", 3.0), None, None).tolerance

    def test_as_options(self):
        """`NAME=VALUE`; the name of a metric of one's own holds a colon."""
        found = parse_tolerances(["relative_l2=20%", "pkg.mod:score=0.5", "top1=0"])

        assert {"relative_l2": "20%", "pkg.mod:score": 0.5, "top1": 0.0} == found

    @pytest.mark.parametrize(
        "text", ["top1", "top1=", "top1=x", "top1=-1", "top1=nan", "top1=x%", "top1=-3%", "top1=inf"]
    )
    def test_no_tolerance(self, text):
        """What is none is told."""
        with pytest.raises(InputError, match="as a tolerance"):
            parse_tolerances([text])
