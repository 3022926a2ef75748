"""Rules among a model's versions: canary, promotion, rollback and aliases, and the file that keeps them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from demi.bundles.find import bundles_at, versions
from demi.bundles.traffic import (
    FILE,
    Canary,
    Header,
    Traffic,
    decode,
    difference,
    encode,
    following_newest,
    parse_header,
    promoted,
    read_traffic,
    rolled_back,
    rolled_back_to,
    with_alias,
    with_canary,
    write_traffic,
)
from demi.errors import InputError
from demi.tensors import parse_spec
from tests.demi.bundles.making import make_bundle

TENTH = Canary(2, 10)


def test_a_canary_leaves_the_rest_to_the_version_that_answered():
    """The version that answered before becomes the stable one."""
    assert Traffic(stable=1, canary=TENTH) == with_canary(Traffic(), TENTH, answering=1)


def test_the_stable_version_cannot_be_its_own_canary():
    """The error names the version."""
    with pytest.raises(InputError, match="version 2 already answers all requests"):
        with_canary(Traffic(stable=2), TENTH, answering=2)


def test_promoting_the_canary():
    """It becomes stable, the split ends, and the old stable version is remembered."""
    assert Traffic(stable=2, previous=(1,)) == promoted(Traffic(stable=1, canary=TENTH), None, 1)


def test_promoting_a_version_pins_it():
    """A version may be named; the one that answered is the one to return to, even if it was never chosen."""
    assert Traffic(stable=1, previous=(3,)) == promoted(Traffic(), 1, answering=3)


def test_promoting_without_a_canary():
    """A version must then be named."""
    with pytest.raises(InputError, match="no canary to promote"):
        promoted(Traffic(stable=1), None, 1)


def test_rolling_back_ends_the_canary_first():
    """The stable version then answers all requests."""
    assert Traffic(stable=1) == rolled_back(Traffic(stable=1, canary=TENTH), [1, 2], 1)


def test_rolling_back_a_promotion():
    """The stable version of before is stable again, and a second rollback goes one further."""
    third = promoted(promoted(Traffic(stable=1), 2, 1), 3, 2)

    second = rolled_back(third, [1, 2, 3], 3)

    assert [3, 2, 1] == [third.stable, second.stable, rolled_back(second, [1, 2, 3], 2).stable]


def test_rolling_back_without_any_rules():
    """The version below the one that answers becomes stable: a bad new version is left with one command."""
    assert 2 == rolled_back(Traffic(), [1, 2, 5], answering=5).stable


@pytest.mark.parametrize("there", [[1], []])
def test_nothing_to_roll_back_to(there):
    """The error says so."""
    with pytest.raises(InputError, match="no earlier version to roll back to"):
        rolled_back(Traffic(), there, answering=1)


def test_a_removed_version_is_not_rolled_back_to():
    """Versions that are gone are passed over."""
    assert 1 == rolled_back(Traffic(stable=3, previous=(2, 1)), [1, 3], 3).stable


def test_rolling_back_to_a_version():
    """Later stable versions are forgotten, earlier ones stay."""
    assert Traffic(stable=2, previous=(1,)) == rolled_back_to(
        Traffic(stable=4, canary=Canary(5, 1), previous=(3, 2, 1)), 2
    )


def test_following_the_newest_again():
    """Only aliases stay."""
    assert Traffic(aliases={"blue": 1}) == following_newest(
        Traffic(stable=1, canary=TENTH, aliases={"blue": 1}, previous=(3,))
    )


def test_aliases():
    """Stable and canary are aliases as well; others are set and removed."""
    traffic = with_alias(Traffic(stable=1, canary=TENTH), "blue", 1)

    assert {"stable": 1, "canary": 2, "blue": 1} == traffic.named_versions
    assert ["stable", "blue"] == traffic.names_of(1)
    assert {} == with_alias(traffic, "blue", None).aliases


@pytest.mark.parametrize("alias", ["stable", "canary", "newest", "1", "", "../x", "a b", "x" * 65])
def test_names_that_cannot_be_aliases(alias):
    """Reserved names, numbers, paths and signs are refused."""
    with pytest.raises(InputError):
        with_alias(Traffic(), alias, 1)


def test_headers():
    """A header is given with or without a value, and its name in any case."""
    assert Header("x-canary") == parse_header("X-Canary")
    assert Header("x-canary", "a=b") == parse_header("x-canary=a=b")
    assert [True, False] == [Header("x").matches(value) for value in ("anything", None)]
    assert [True, False, False] == [Header("x", "yes").matches(value) for value in ("yes", "no", None)]
    with pytest.raises(InputError, match="is not a header"):
        parse_header("x canary")


def test_inputs_that_differ():
    """The first input that differs is named, with both forms."""
    now, then = [parse_spec("x:fp32[batch,3]")], [parse_spec("x:fp32[batch,4]")]

    assert "" == difference(now, now)
    assert "input `x` is x:" in difference(now, then)
    assert "absent in the other" in difference([*now, parse_spec("mask:int64[batch]")], now)


numbers = st.integers(1, 1000)
rules = st.builds(
    Traffic,
    stable=st.none() | numbers,
    canary=st.none()
    | st.builds(
        Canary,
        version=numbers,
        percent=st.floats(0, 100),
        header=st.none() | st.builds(Header, st.sampled_from(["x-canary", "x-user"]), st.text(max_size=5)),
    ),
    aliases=st.dictionaries(st.sampled_from(["blue", "old", "v.1"]), numbers),
    previous=st.lists(numbers, max_size=10, unique=True).map(tuple),
)


@given(rules)
def test_rules_are_read_as_they_were_written(traffic):
    """Every set of rules survives its file."""
    assert traffic == decode(encode(traffic), FILE)


@given(rules, st.lists(numbers, min_size=1, max_size=5), numbers)
def test_a_rollback_goes_to_a_version_that_there_is(traffic, there, answering):
    """Whatever the rules, a rollback without a canary ends at an existing version, or is refused."""
    try:
        after = rolled_back(traffic, there, answering)
    except InputError:
        return
    assert after.canary is None
    assert traffic.canary is not None or after.stable in there


def test_a_model_without_the_file_has_no_rules(tmp_path):
    """Its newest version answers."""
    assert Traffic() == read_traffic(tmp_path)


def test_the_file_beside_versions_is_no_version(tmp_path):
    """Bundles are found as before."""
    make_bundle(tmp_path / "m", 1)
    write_traffic(tmp_path / "m", Traffic(stable=1))

    assert Traffic(stable=1) == read_traffic(tmp_path / "m")
    assert ([1], [tmp_path / "m/1"]) == (versions(tmp_path / "m"), bundles_at(tmp_path / "m"))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "truncated"),
        ("[]", "object"),
        ('{"stable": "1"}', "stable"),
        ('{"stable": 0}', ">= 1"),
        ('{"canary": {"version": 2, "percent": 101}}', "<= 100"),
        ('{"aliases": {"stable": 1}}', "stable"),
        ('{"aliases": {"../x": 1}}', "cannot be an alias"),
        ('{"canary": {"version": 2, "percent": 1, "header": {"name": "a b"}}}', "is not a header"),
        ('{"stabel": 1}', "unknown member `stabel`"),
        ('{"schema": 2}', "schema 2"),
        ("[" * 100_000, "not valid"),
    ],
)
def test_files_that_are_not_valid(tmp_path, text, why):
    """Each mistake is an error that says what is wrong."""
    (tmp_path / FILE).write_text(text)

    with pytest.raises(InputError, match=why):
        read_traffic(tmp_path)


def test_a_huge_file_is_not_read(tmp_path):
    """The file is untrusted, and is a few lines long if it is right."""
    (tmp_path / FILE).write_bytes(b" " * (1 << 20) + b"{}")

    with pytest.raises(InputError, match="too large"):
        read_traffic(tmp_path)
