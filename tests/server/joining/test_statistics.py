"""Statistics, index and metrics of several servers as one."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from demi.server.joining.index import join_index
from demi.server.joining.metrics import join_metrics
from demi.server.joining.statistics import join_statistics
from demi.server.models.describe import describe_statistics
from demi.server.models.model import Model
from demi.server.models.repository import Repository
from demi.server.protocol.schemas import BatchStats, DurationStats, IndexEntry, StatsAnswer
from demi.server.telemetry.metrics import create_registry, write_metrics

ONCE = DurationStats(1, 10)
EMPTY = describe_statistics(Model("m", "1"))
NAMES = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1, max_size=5)


def answer(count: int, *sizes: int, last: int = 0, name: str = "m") -> StatsAnswer:
    """Return the statistics of a server that answered `count` requests in one run of each size."""
    stages = replace(EMPTY.inference_stats, success=DurationStats(count, 100 * count))
    batches = [BatchStats(size, ONCE, ONCE, ONCE) for size in sizes]
    changes = {"inference_count": count, "execution_count": len(sizes), "last_inference": last}
    return StatsAnswer([replace(EMPTY, name=name, inference_stats=stages, batch_stats=batches, **changes)])


def test_counts_and_durations_add_up():
    """The time of the last inference is the latest; all other numbers are sums."""
    (joined,) = join_statistics([answer(3, 1, 2, last=7), answer(2, 2, last=5)]).model_stats

    assert (5, 3, 7) == (joined.inference_count, joined.execution_count, joined.last_inference)
    assert DurationStats(5, 500) == joined.inference_stats.success


def test_batches_of_one_size_belong_together():
    """Sizes are sorted, and each appears once."""
    (joined,) = join_statistics([answer(3, 2, 1), answer(2, 2)]).model_stats

    assert [(1, 1), (2, 2)] == [(batch.batch_size, batch.compute_infer.count) for batch in joined.batch_stats]


def test_a_model_that_only_one_server_has_is_listed():
    """While a model is being loaded everywhere, its statistics are those of the servers that have it."""
    joined = join_statistics([answer(3, 1), answer(2, 1, name="new")])

    assert ["m", "new"] == [stats.name for stats in joined.model_stats]


@given(st.lists(st.integers(0, 9), min_size=1, max_size=5))
def test_joining_in_steps_is_joining_at_once(counts):
    """An answer that was joined can be joined again."""
    answers = [answer(count, count) for count in counts]

    assert join_statistics(answers) == join_statistics([join_statistics(answers[:2]), *answers[2:]])


READY = IndexEntry("m", "1", "READY", "")
FAILED = IndexEntry("m", "1", "UNAVAILABLE", "the model was unloaded")


@pytest.mark.parametrize(
    ("indexes", "expected"),
    [
        ([[READY], [READY]], READY),
        ([[FAILED], [FAILED]], FAILED),
        ([[READY], [FAILED]], replace(FAILED, reason="on 1 of 2 servers: the model was unloaded")),
        ([[READY], []], IndexEntry("m", "1", "LOADING", "ready on 1 of 2 servers")),
    ],
)
def test_a_version_is_as_ready_as_where_it_is_least(indexes, expected):
    """Clients may be sent to any server, so a version is ready once it is everywhere."""
    assert [expected] == join_index(indexes)


def test_versions_are_sorted_as_numbers():
    """Version 10 comes after version 9, as in the index of one server."""
    found = join_index([[replace(READY, version=version) for version in ("10", "9")]])

    assert ["9", "10"] == [entry.version for entry in found]


def test_metrics_of_servers_parse_as_one_text():
    """Every sample has the label of its server, and a parser finds each family once."""
    text = write_metrics(create_registry(Repository([Model("m", "1")])))
    alone = list(text_string_to_metric_families(text.decode()))

    joined = list(text_string_to_metric_families(join_metrics({"a": text, "b": text}).decode()))

    assert [family.name for family in alone] == [family.name for family in joined]
    assert {"a", "b"} == {sample.labels["replica"] for family in joined for sample in family.samples}
    assert 2 * sum(len(family.samples) for family in alone) == sum(len(family.samples) for family in joined)


@given(NAMES)
def test_any_name_of_a_server_is_escaped(name):
    """Quotes and backslashes in a name do not end the label."""
    text = b'# HELP demi_x Help\n# TYPE demi_x gauge\ndemi_x{model="m"} 1.0\ndemi_x 2.0\n'

    (family,) = text_string_to_metric_families(join_metrics({name: text}).decode())

    assert [{"replica": name, "model": "m"}, {"replica": name}] == [sample.labels for sample in family.samples]
