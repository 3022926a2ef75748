"""`demi report`: one page about all versions of a model."""

from __future__ import annotations

import pytest

from tests.browser import look, needs_browser
from tests.calibration.bundles import export

FIRST = "m (float[n, 4] x) => (float[n, 4] y) { y = Mul(x, x) }"
SECOND = "m (float[n, 4] x) => (float[n, 4] y) { a = Mul(x, x) y = Relu(a) }"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Two versions of a model, the second with one node more."""
    root = tmp_path_factory.mktemp("models")
    export(root, FIRST, name="m")
    export(root, SECOND, name="m", version=2)
    return root


def test_versions_and_what_changed(demi, models, tmp_path):
    """Each version has a row with its error, and the new node is listed as a change."""
    code, out, err = demi("report", models / "m", "-o", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()

    assert (0, "") == (code, err)
    assert "2 versions of m" in out
    for words in (">v1<", ">v2<", "relative L2 of", "From v1 to v2", "Relu", "absent"):
        assert words in page


def test_a_damaged_version_is_left_out(demi, models, tmp_path):
    """The warning names it; without any version left, the error says so."""
    import shutil

    copy = shutil.copytree(models, tmp_path / "models")
    (copy / "m" / "2" / "manifest.json").write_text("{")
    code, _, err = demi("report", copy / "m", "-o", tmp_path / "page.html")

    assert 0 == code
    assert "version 2 is left out" in err


@needs_browser
def test_the_page_in_a_browser(demi, models, tmp_path):
    """No errors, no requests, and nothing but tables scrolls sideways, on a phone as well."""
    demi("report", models / "m", "-o", tmp_path / "page.html")
    seen = look((tmp_path / "page.html").read_text(), tmp_path, 400)

    assert ([], []) == (seen.complaints, seen.requests)
    assert seen.reach <= seen.width
