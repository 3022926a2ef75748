"""Statistics: counts and times that the server reports."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
from hypothesis import given
from hypothesis import strategies as st

from demi.errors import InferenceError
from demi.server.errors import DeadlineError
from demi.server.models.describe import describe_statistics
from demi.server.scheduling.statistics import LATENCIES, SECONDS, Histogram
from tests.server.bundles import FRAGILE, SCALE, write_bundle
from tests.server.fakes import open_fake, until
from tests.server.http.test_infer import ROW, infer
from tests.server.processes import serving
from tests.server.scheduling.test_batcher import ask, behind_a_run, model_of, open_rows, values

WIDE = """wide (float[batch, 512] x) => (float[batch, 512] y)
<float[1] zero = {0.0}>
{ again = Transpose<perm = [1, 0]>(x)
  square = MatMul(again, x)
  tenth = MatMul(square, square)
  more = MatMul(tenth, square)
  nothing = Mul(more, zero)
  sum = MatMul(x, nothing)
  y = Add(sum, x) }"""
"""Returns its input after some milliseconds of work."""


def test_rows_and_runs():
    """Inferences count rows, and executions count runs: four requests behind one share the second run."""
    session = open_rows(shut=True)
    model = model_of(session)
    asyncio.run(behind_a_run(session, model, [values(1), values(2), values(1), values(1)]))
    stats = describe_statistics(model)

    assert (6, 2) == (stats.inference_count, stats.execution_count)
    assert [(1, 1), (5, 1)] == [(row.batch_size, row.compute_infer.count) for row in stats.batch_stats]
    assert 5 == stats.inference_stats.success.count == stats.inference_stats.queue.count
    assert 0 == stats.inference_stats.fail.count


def test_times_add_up():
    """Queueing, joining, running and splitting add up to a request's time, except its way back to the event loop."""
    session = open_rows(pause_s=0.02)
    model = model_of(session, max_rows=1)

    async def two():
        await asyncio.gather(ask(model, values(1)), ask(model, values(1)))

    asyncio.run(two())
    stats = describe_statistics(model).inference_stats
    parts = (stats.queue, stats.compute_input, stats.compute_infer, stats.compute_output)

    assert 40e6 <= stats.compute_infer.ns <= stats.success.ns
    assert 20e6 <= stats.queue.ns
    assert 0 <= stats.success.ns - sum(part.ns for part in parts) < 50e6
    assert stats.success.ns >= 60e6


def test_a_split_request_is_one_request():
    """Twenty rows in runs of eight count as twenty inferences, three executions and one success."""
    model = model_of(open_rows())

    async def one():
        await ask(model, values(20))

    asyncio.run(one())
    stats = describe_statistics(model)

    assert (20, 3, 1) == (stats.inference_count, stats.execution_count, stats.inference_stats.success.count)


def test_failures_are_counted():
    """A failed run and a missed deadline count as failures, not as successful inferences."""
    model = model_of(open_fake(InferenceError("no")))
    slow = model_of(open_rows(pause_s=0.05))

    async def fail():
        with pytest.raises(InferenceError):
            await ask(model, values(1))
        with pytest.raises(DeadlineError):
            await ask(slow, values(1), 0.01)
        await until(lambda: slow.statistics.execution_count == 1)

    asyncio.run(fail())
    for stats in (describe_statistics(model).inference_stats, describe_statistics(slow).inference_stats):
        assert (0, 1) == (stats.success.count, stats.fail.count)
    assert 0 == model.statistics.inference_count


def test_a_histogram_counts_up_to_its_bounds():
    """A value equal to a bound counts below it, and values beyond all bounds are counted too."""
    histogram = Histogram((1, 2, 4))
    for value in (1, 2, 3, 9):
        histogram.add(value)

    assert ([1, 1, 1, 1], 15) == (histogram.counts, histogram.total)


def test_over_http(client):
    """Statistics of one version, of all versions and of all models have every member that load generators read."""
    before = client.get("/v2/models/scale/versions/1/stats").json()["model_stats"][0]
    infer(client, ROW, "/v2/models/scale/versions/1/infer")
    after = client.get("/v2/models/scale/versions/1/stats").json()["model_stats"][0]
    every = client.get("/v2/models/stats").json()["model_stats"]

    assert 1 == after["inference_count"] - before["inference_count"]
    assert ("scale", "1") == (after["name"], after["version"])
    assert {"success", "queue", "compute_input", "compute_infer", "compute_output", "cache_hit", "cache_miss"} <= set(
        after["inference_stats"]
    )
    assert ["1", "2"] == [row["version"] for row in client.get("/v2/models/scale/stats").json()["model_stats"]]
    assert {"scale", "damaged", "types"} <= {row["name"] for row in every}
    assert 404 == client.get("/v2/models/nope/stats").status_code
    assert 404 == client.get("/v2/models/scale/versions/9/stats").status_code


def test_tritonclient_reads_them(server):
    """tritonclient's own call returns them."""
    client = triton.InferenceServerClient(urlsplit(server.url).netloc)
    stats = client.get_inference_statistics("scale", "2")
    client.close()

    assert "2" == stats["model_stats"][0]["version"]


def test_concurrent_requests_share_runs_in_a_real_server(tmp_path):
    """Sixty-four concurrent requests need fewer runs than requests, and each gets its own rows."""
    with serving(write_bundle(tmp_path / "b", WIDE)) as server, ThreadPoolExecutor(16) as pool:

        def echo(index: int) -> bool:
            x = np.full((1 + index % 3, 512), index, np.float32)
            response = httpx.post(
                server.url + "/v2/models/wide/infer",
                json={"inputs": [{"name": "x", "shape": x.shape, "datatype": "FP32", "data": x.ravel().tolist()}]},
            )
            return bool(np.array_equal(x.ravel(), response.json()["outputs"][0]["data"]))

        assert all(pool.map(echo, range(64)))
        stats = httpx.get(server.url + "/v2/models/wide/stats").json()["model_stats"][0]

    assert sum(1 + index % 3 for index in range(64)) == stats["inference_count"]
    assert stats["execution_count"] < 64
    assert 64 == stats["inference_stats"]["success"]["count"]


def test_a_bad_request_beside_good_ones_in_a_real_server(tmp_path):
    """A model that fails for one of several requests still answers the others."""
    good = {"name": "shape", "shape": [2], "datatype": "INT64", "data": [2, 2]}
    x = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}
    with serving(write_bundle(tmp_path / "b", FRAGILE)) as server, ThreadPoolExecutor(8) as pool:

        def send(index: int) -> int:
            shape = {**good, "data": [3, 3]} if index % 4 == 0 else good
            return httpx.post(server.url + "/v2/models/fragile/infer", json={"inputs": [x, shape]}).status_code

        statuses = list(pool.map(send, range(16)))

    assert [500, 200, 200, 200] * 4 == statuses


def test_a_request_larger_than_a_run_over_http(tmp_path):
    """Over HTTP, twenty rows come back in order from runs of eight."""
    x = np.arange(60, dtype=np.float32).reshape(20, 3)
    body = {"inputs": [{"name": "x", "shape": [20, 3], "datatype": "FP32", "data": x.ravel().tolist()}]}
    with serving(write_bundle(tmp_path / "b", SCALE)) as server:
        answer = httpx.post(server.url + "/v2/models/scale/infer", json=body).json()["outputs"][0]
        stats = httpx.get(server.url + "/v2/models/scale/stats").json()["model_stats"][0]

    assert (x * [2, 3, 4]).ravel().tolist() == answer["data"]
    assert (20, 3) == (stats["inference_count"], stats["execution_count"])


class TestQuantiles:
    """Estimates from a histogram's counts."""

    def test_values_are_spread_over_their_bucket(self):
        """Ten values below 1, ten between 1 and 3: three quarters are below 2."""
        histogram = Histogram((1.0, 3.0))
        histogram.add(0.5, 10)
        histogram.add(2.0, 10)

        assert 2.0 == histogram.quantile(0.75)
        assert 1.0 == histogram.quantile(0.5)

    def test_earlier_values_are_left_out(self):
        """Only what came after `before` counts."""
        histogram = Histogram((1.0, 3.0))
        histogram.add(0.5, 100)
        before = tuple(histogram.counts)
        assert histogram.quantile(0.5, before) is None
        histogram.add(2.0, 2)

        assert 2.0 == histogram.quantile(0.5, before)

    def test_values_beyond_all_bounds(self):
        """They count as the last bound: no estimate is made up."""
        histogram = Histogram((1.0, 3.0))
        histogram.add(100.0)

        assert 3.0 == histogram.quantile(0.5)
        assert Histogram((1.0,)).quantile(0.5) is None


@given(st.lists(st.floats(1e-4, 10.0), min_size=1, max_size=200), st.sampled_from([0.5, 0.9, 0.99]))
def test_quantiles_are_within_a_bucket_of_the_exact_ones(seconds, share):
    """A bucket is at most 17% wide, so the quantile is that close to NumPy's."""
    histogram = Histogram(LATENCIES)
    for each in seconds:
        histogram.add(each)
    exact = float(np.percentile(seconds, 100 * share, method="inverted_cdf"))

    assert exact == pytest.approx(histogram.quantile(share), rel=0.17)


@given(st.lists(st.floats(0.0, 100.0), max_size=50))
def test_a_coarse_histogram_counts_the_same(seconds):
    """Merging the fine buckets gives the counts of a histogram with the coarse bounds."""
    fine, coarse = Histogram(LATENCIES), Histogram(SECONDS)
    for each in seconds:
        fine.add(each)
        coarse.add(each)

    assert (coarse.counts, coarse.total) == (fine.coarse(SECONDS).counts, fine.coarse(SECONDS).total)
