"""`demi.testing` and the pytest plugin: a check inside someone's own test suite."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from xml.etree import ElementTree as ET

import numpy as np
import pytest

from demi.errors import InputError
from demi.testing import assert_within_budget, check
from tests.calibration.bundles import X, edit_model, export, scale_weight
from tests.readme import ROOT

pytest_plugins = ["pytester"]


@pytest.fixture
def bundle(tmp_path):
    """A sound bundle."""
    return export(tmp_path)


class TestAssertion:
    """`assert_within_budget`."""

    def test_a_sound_bundle(self, bundle):
        """It passes, and the check is there to look at."""
        found = assert_within_budget(bundle, {"x": X, "labels": np.zeros(6, int)}, labels="labels", metric="top1")

        assert found
        assert "top1" == found.facts.data.task.half.name

    def test_a_damaged_one(self, bundle):
        """The assertion names the bundle, the output, the number and the budget."""
        edit_model(bundle, scale_weight("w1_fp16", 50))
        with pytest.raises(AssertionError, match=r"tiny v1 \(.*\) failed:\n`y`: relative_l2 is 0\.0\d+, the budget is"):
            assert_within_budget(bundle)

    @pytest.mark.parametrize("budget", ["relative_l2=1e-9", ["y:relative_l2=1e-9"]])
    def test_a_budget(self, bundle, budget):
        """As on the command line, one or several."""
        with pytest.raises(AssertionError, match="the budget is at most 1e-09"):
            assert_within_budget(bundle, budget=budget)

    def test_options_that_cannot_be_checked(self, bundle):
        """Bad input is not a failed assertion."""
        with pytest.raises(InputError, match="no such baseline"):
            assert_within_budget(bundle, baseline="none.json")

    def test_lists_are_arrays(self, bundle):
        """Samples may be written as they are thought of; labels as well."""
        samples = {"x": X.tolist(), "labels": [0] * 6}

        assert check(bundle, samples, labels="labels", metric="top1", budget="relative_l2=1")

    @pytest.mark.parametrize("data", [5, [X], X])
    def test_data_that_cannot_be_used(self, bundle, data):
        """The error explains what samples are."""
        with pytest.raises(InputError, match="samples of type") as caught:
            check(bundle, data)
        assert "input name" in caught.value.hint

    @pytest.mark.parametrize("loss", [float("nan"), float("inf"), -0.1])
    def test_a_loss_that_cannot_be_held(self, bundle, loss):
        """A limit that means nothing is refused, not failed."""
        with pytest.raises(InputError, match="is not a limit"):
            check(bundle, {"x": X, "l": np.zeros(6, int)}, labels="l", metric="top1", max_loss=loss)

    @pytest.mark.parametrize(
        "arguments",
        [
            {"bundle": None},
            {"bundle": 3},
            {"budget": 1e-3},
            {"budget": [1e-3]},
            {"budget": {"relative_l2": 1e-3}},
            {"labels": np.zeros(6)},
            {"metric": len},
            {"max_loss": "0.002"},
            {"baseline": 1},
        ],
        ids=lambda arguments: next(iter(arguments)),
    )
    def test_arguments_of_another_kind(self, bundle, arguments):
        """Arguments of a wrong type raise errors with their name, not failed assertions."""
        with pytest.raises(InputError, match=f"`{next(iter(arguments))}` is a "):
            assert_within_budget(**({"bundle": bundle, "data": {"x": X}} | arguments))

    def test_without_raising(self, bundle):
        """The check alone says by its truth whether it passed."""
        assert check(bundle)
        assert not check(bundle, budget="relative_l2=1e-9")


class TestPlugin:
    """The `demi_check` fixture."""

    @staticmethod
    def run(pytester, body, *arguments):
        pytester.makepyfile(body)
        # By its module, and not by the entry point as well where the package is installed.
        options = ["no:demi", "demi.pytest_plugin", "no:cacheprovider"]
        return pytester.runpytest_inprocess(*(part for name in options for part in ("-p", name)), *arguments)

    def test_passes_and_fails(self, pytester, bundle):
        """One test passes, the other fails in one line of the test's own."""
        body = f"""
            def test_good(demi_check):
                demi_check({str(bundle)!r})

            def test_bad(demi_check):
                demi_check({str(bundle)!r}, budget="relative_l2=1e-9")
        """
        result = self.run(pytester, body)

        result.assert_outcomes(passed=1, failed=1)
        result.stdout.fnmatch_lines(
            ["E*AssertionError: tiny v1 *failed:", "E*`y`: relative_l2 is *budget is at most 1e-09"]
        )
        result.stdout.no_fnmatch_line("*raise AssertionError*")

    def test_unusable_input(self, pytester, bundle):
        """A DemiError shows the test's own line and the message, without the frames of Demi's code."""
        body = f"def test_bad(demi_check):\n    demi_check({str(bundle)!r}, 'none.npz')"
        result = self.run(pytester, body)

        result.assert_outcomes(failed=1)
        result.stdout.fnmatch_lines([">*demi_check(*", "E*no such *file*"])
        assert not [line for line in result.outlines if line.startswith(("calibration", "demi/"))]
        assert len(result.outlines) < 30

    def test_measures_are_recorded(self, pytester, bundle):
        """Measures are recorded in pytest's own XML, for failed tests as well."""
        body = f"def test_bad(demi_check):\n    demi_check({str(bundle)!r}, budget='relative_l2=1e-9')"
        self.run(pytester, body, "--junitxml=out.xml")
        found = ET.parse(pytester.path / "out.xml").findall(".//property")

        assert {"demi: tiny: relative_l2 of `y`", "demi: tiny: model_bytes", "demi: tiny: fp32_nodes"} == {
            each.get("name") for each in found
        }

    def test_the_fixture_is_listed(self, pytester):
        """`pytest --fixtures` lists the fixture with its docstring."""
        result = self.run(pytester, "", "--fixtures")

        result.stdout.fnmatch_lines(["demi_check*", "*Check a bundle as `demi.testing.assert_within_budget` does*"])


def test_the_plugin_is_found():
    """pytest finds it by the package's entry point."""
    points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["pytest11"]

    assert {"demi": "demi.pytest_plugin"} == points


def test_the_plugin_costs_nothing():
    """It is loaded with every pytest of everyone, so it brings in neither NumPy nor anything of ours but itself."""
    lines = (
        "import pytest, sys; before = set(sys.modules); import demi.pytest_plugin; print(*set(sys.modules) - before)"
    )
    ended = subprocess.run([sys.executable, "-c", lines], cwd=ROOT, capture_output=True, text=True, check=True)

    assert {"demi", "demi.pytest_plugin", "demi.version"} == set(ended.stdout.split())
