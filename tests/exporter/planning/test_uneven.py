"""Errors that rest on a few rows of the samples."""

import numpy as np
import pytest

from demi.exporter.planning.uneven import Uneven, in_words, uneven_outputs


def outputs(*errors, rows=8):
    """Return outputs of FP32 and of half in two sets, with these errors in the first rows and 1e-9 in all others."""
    want = np.ones((2 * rows, 3), np.float32)
    got = want.astype(np.float64)
    got += 1e-9
    got[: len(errors), 0] += errors
    return [{"y": part} for part in np.split(want, 2)], [{"y": part} for part in np.split(got, 2)]


def test_one_row_is_all_there_is():
    """If one of sixteen rows causes the error, the output is reported with that number."""
    found = uneven_outputs(*outputs(0.1))

    assert {"y": Uneven(pytest.approx(1.0), 16, pytest.approx(0.1 / 3**0.5))} == found
    assert "`y`: about 1 of 16 rows" in in_words(found)[0]
    assert "(a request like the hardest row alone: 0.058)" in in_words(found)[0]


def test_alike():
    """If all rows have the same error, nothing is reported."""
    assert {} == uneven_outputs(*outputs())
    assert {} == uneven_outputs(*outputs(0.1, 0.1, 0.1, 0.1, 0.1))


def test_too_few_rows_to_tell():
    """Four rows are too few for a report."""
    assert {} == uneven_outputs(*outputs(0.1, rows=2))


def test_what_has_no_error_to_look_at():
    """Integers, exact outputs, outputs of another shape and infinities are not reported."""
    rows = np.arange(16.0).reshape(16, 1).astype(np.float32)

    assert {} == uneven_outputs([{"y": rows.astype(np.int64)}], [{"y": rows.astype(np.int64) + 1}])
    assert {} == uneven_outputs([{"y": rows}], [{"y": rows}])
    assert {} == uneven_outputs([{"y": rows}], [{"y": rows[:3]}])
    assert {} == uneven_outputs([{"y": rows}], [{"y": np.full_like(rows, np.inf)}])
    assert {} == uneven_outputs([], [])


def test_a_scalar_is_a_row():
    """Outputs without axes count as one row for each set."""
    sets = [{"y": np.float32(1)}] * 9
    found = uneven_outputs(sets, [{"y": np.float32(2)}, *sets[1:]])

    assert {"y": Uneven(1.0, 9, 1.0)} == found
