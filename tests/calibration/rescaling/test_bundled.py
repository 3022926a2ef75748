"""Rescaled bundles: `demi check` on true and forged certificates."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from demi.bundles.bundle import open_bundle
from demi.calibration.gate.check import check_bundle
from demi.calibration.rescaling.bundled import certificate_of, rescaling_problems
from demi.calibration.rescaling.certificate import Certificate, read_certificate
from demi.errors import BundleError
from tests.calibration.bundles import export, reseal
from tests.models import OVERFLOW

FEEDS = {"x": np.full((64,), 1024.0, np.float32)}


@pytest.fixture
def rescaled(tmp_path: Path) -> Path:
    """Return a bundle whose factor is smaller than the source's."""
    return export(tmp_path, OVERFLOW, inputs=FEEDS, rescale=True)


def test_true_certificate_passes(rescaled: Path):
    """The manifest says that the model was rescaled, and every equation holds."""
    bundle = open_bundle(rescaled)

    assert bundle.manifest.rescaled
    assert () == rescaling_problems(bundle)
    assert check_bundle(rescaled)


def test_bundle_that_was_not_rescaled_has_none(tmp_path: Path):
    """The gate is not applied to a bundle without a certificate."""
    path = export(tmp_path, OVERFLOW, inputs=FEEDS)

    assert certificate_of(open_bundle(path)) is None
    assert "rescaling refuted" not in [result.gate for result in check_bundle(path).gate_results]


@pytest.mark.parametrize("part", ["tensors", "constants"])
def test_forged_exponent_fails_the_check(rescaled: Path, part: str):
    """A forged exponent fails the check, although every digest is right."""
    path = rescaled / "rescale.json"
    path.write_bytes(_forged(read_certificate(path), part).to_json())
    reseal(rescaled)

    (result,) = (each for each in check_bundle(rescaled).gate_results if each.gate == "rescaling refuted")

    assert result.errors
    assert not check_bundle(rescaled)


def test_missing_certificate_is_an_error(rescaled: Path):
    """A manifest with `rescaled` needs the certificate's file."""
    (rescaled / "rescale.json").unlink()
    reseal(rescaled)

    with pytest.raises(BundleError, match=r"holds no `rescale\.json`"):
        check_bundle(rescaled)


def _forged(certificate: Certificate, part: str) -> Certificate:
    if part == "tensors":
        name, exponent = next(iter(certificate.tensors.items()))
        return replace(certificate, tensors=certificate.tensors | {name: exponent + 1})
    first, *others = certificate.constants
    return replace(certificate, constants=(replace(first, exponent=first.exponent + 1), *others))
