"""The garbage collector is as it was afterwards."""

from __future__ import annotations

import gc

import pytest

from demi.exporter.rescaling.collector import collector_paused


def test_it_is_paused_inside():
    """And on again behind, after an error as well."""
    with collector_paused():
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(KeyError), collector_paused():
        raise KeyError
    assert gc.isenabled()


def test_it_stays_off():
    """Where the caller has switched it off."""
    gc.disable()
    try:
        with collector_paused():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
