"""The baseline file: written atomically, read strictly, compared within its tolerances."""

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
    """Return an entry with these measures."""
    return Entry(1, "fp16", "x.npz", 2, "00", encode_plan(plan), list(measures))


@pytest.fixture
def written(tmp_path):
    """Return a baseline file with one model."""
    path = tmp_path / "baseline.json"
    write_baseline(path, {"tiny": entry(stored_measure(MEASURE, None, None))})
    return path


class TestFile:
    """Writing and reading."""

    def test_round_trip(self, written):
        """A baseline is read as it was written: rows to seven digits, the plan in order, names with any characters."""
        found = read_baseline(written).entry("tiny", "fp16")

        assert np.allclose(ROWS, found.measures[0].rows, rtol=1e-6)
        assert ("relative_l2", "y", "10%") == (
            found.measures[0].name,
            found.measures[0].output,
            found.measures[0].tolerance,
        )
        assert ["b", "a"] == list(decode_plan(found, written).decisions)

    def test_a_row_is_a_line(self, written):
        """Each row is on its own line, so that a diff of the file is readable."""
        assert "            [1.0, 2.0],\n" in written.read_text()

    def test_names_are_kept(self, tmp_path):
        """A node whose name looks like a row keeps its name."""
        odd = make_plan("fp16", [Decision("[ 1,  2 ]", "Exp", Precision.HALF, Reason.SAFE)])
        write_baseline(tmp_path / "b.json", {"tiny": entry(plan=odd)})

        assert ["[ 1,  2 ]"] == list(read_baseline(tmp_path / "b.json").models["tiny"].plan)

    def test_baselines_are_written_atomically(self, tmp_path):
        """A baseline that cannot be written leaves no partial file."""
        with pytest.raises(InputError, match="cannot be written"):
            write_baseline(tmp_path / "none" / "b.json", {})

        assert [] == list(tmp_path.iterdir())


class TestRefused:
    """Files that are not a baseline of this model."""

    @pytest.mark.parametrize(
        ("edit", "message"),
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
    def test_wrong_field(self, written, edit, message):
        """The error names the wrong field and how to write a valid baseline."""
        written.write_text(json.dumps(edit(json.loads(written.read_text()))))
        with pytest.raises(InputError, match="cannot be read") as caught:
            read_baseline(written)

        assert message in str(caught.value)
        assert "--write-baseline" in str(caught.value)

    def test_unknown_reason(self, written):
        """A plan with an unknown reason raises an error that names the node."""
        written.write_text(written.read_text().replace("half safe", "half lucky"))
        with pytest.raises(InputError, match="the plan has `half lucky` for `b`"):
            read_baseline(written)

    @pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe", b"[" * 10_000])
    def test_garbage(self, tmp_path, data):
        """Text that is not JSON raises an error."""
        (tmp_path / "b.json").write_bytes(data)
        with pytest.raises(InputError, match="cannot be read"):
            read_baseline(tmp_path / "b.json")

    def test_no_file(self, tmp_path):
        """A missing file raises an error with the command that writes one."""
        with pytest.raises(InputError, match=r"no such baseline[\s\S]*--write-baseline"):
            read_baseline(tmp_path / "none.json")

    def test_another_model(self, written):
        """The error names the models in the baseline."""
        with pytest.raises(InputError, match=r"holds no model `other`[\s\S]*it holds tiny"):
            read_baseline(written).entry("other", "fp16")

    def test_another_precision(self, written):
        """A bf16 bundle is not compared with an fp16 baseline."""
        with pytest.raises(InputError, match="is for fp16, but the bundle is bf16"):
            read_baseline(written).entry("tiny", "bf16")

    def test_another_kind_of_device(self, written):
        """Emulated outputs are not compared with those of a GPU; the index of the GPU does not matter."""
        with pytest.raises(InputError, match="measured on cpu, but this check runs on cuda:0") as caught:
            read_baseline(written).entry("tiny", "fp16", "cuda:0")
        assert "--device cpu" in caught.value.hint
        text = written.read_text().replace('"version"', '"device": "cuda:0", "version"')
        written.write_text(text)

        assert "cuda:0" == read_baseline(written).entry("tiny", "fp16", "cuda:1").device

    def test_one_model_twice(self):
        """Two bundles of one name raise an error, since one baseline entry cannot be for both."""
        with pytest.raises(InputError, match="two bundles are called `a`"):
            require_unique_names(["a", "b", "a"])


def spoil(file, **fields):
    """Write the file with other fields in its first measure."""
    file["models"]["tiny"]["measures"][0] |= fields
    return file


class TestTolerances:
    """Tolerances: the most by which a measure may become worse."""

    def test_relative_and_absolute_tolerances(self):
        """A percentage is a share of the baseline's value; a number is absolute."""
        assert 0.05 == pytest.approx(StoredMeasure("top1", 0.5, "10%").allowed)
        assert 0.1 == StoredMeasure("top1", 0.5, 0.1).allowed

    def test_zero_error(self):
        """A relative L2 of zero may become as large as differences between machines."""
        assert ERROR_FLOOR == StoredMeasure("relative_l2", 0.0, "10%").allowed

    def test_precedence_of_tolerances(self):
        """A given tolerance precedes the baseline's, which precedes the default; a user's own metric has 1%."""
        known = entry(StoredMeasure("relative_l2", 1.0, "30%", "y"))

        assert "20%" == stored_measure(MEASURE, "20%", known).tolerance
        assert "30%" == stored_measure(MEASURE, None, known).tolerance
        assert "10%" == stored_measure(MEASURE, None, entry()).tolerance
        assert "1%" == stored_measure(Measure("own:metric", 3.0), None, None).tolerance

    def test_parse_tolerances(self):
        """Tolerances are `NAME=VALUE`; the name of a user's own metric contains a colon."""
        found = parse_tolerances(["relative_l2=20%", "pkg.mod:score=0.5", "top1=0"])

        assert {"relative_l2": "20%", "pkg.mod:score": 0.5, "top1": 0.0} == found

    @pytest.mark.parametrize(
        "text", ["top1", "top1=", "top1=x", "top1=-1", "top1=nan", "top1=x%", "top1=-3%", "top1=inf"]
    )
    def test_invalid_tolerance(self, text):
        """An invalid tolerance raises an error."""
        with pytest.raises(InputError, match="as a tolerance"):
            parse_tolerances([text])
