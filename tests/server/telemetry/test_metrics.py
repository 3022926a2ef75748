"""Prometheus metrics: names, labels, and agreement with the statistics."""

from __future__ import annotations

import asyncio

import httpx
from prometheus_client.parser import text_string_to_metric_families

from demi.server.models.model import Model
from demi.server.models.repository import Repository
from demi.server.settings import ServeSettings
from demi.server.telemetry.metrics import create_registry, write_metrics
from tests.server.bundles import SCALE, write_bundle
from tests.server.fakes import until
from tests.server.http.test_infer import ROW, infer
from tests.server.processes import serving
from tests.server.scheduling.test_batcher import ask, behind_a_run, model_of, open_rows, values

LABELS = (("model", "m"), ("precision", "fp16"), ("version", "1"))


def samples(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Return samples by name and labels; the parser appends `_total` to counters."""
    families = text_string_to_metric_families(text)
    return {
        (s.name.removesuffix("_total"), tuple(sorted(s.labels.items()))): s.value
        for family in families
        for s in family.samples
    }


def metrics_of(*models: Model) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Return the samples of these models and the process."""
    return samples(write_metrics(create_registry(Repository(list(models)))).decode())


def test_counts_are_those_of_the_statistics():
    """Triton's metrics equal the statistics: rows, runs, requests and times."""
    session = open_rows(shut=True)
    model = model_of(session)
    asyncio.run(behind_a_run(session, model, [values(1), values(2)]))
    found = metrics_of(model)

    assert 3 == found["nv_inference_request_success", LABELS]
    assert 4 == found["nv_inference_count", LABELS]
    assert 2 == found["nv_inference_exec_count", LABELS]
    assert 0 == found["nv_inference_request_failure", LABELS]
    assert found["nv_inference_request_duration_us", LABELS] >= found["nv_inference_queue_duration_us", LABELS] > 20_000
    assert 1 == found["demi_model_ready", LABELS]


def test_a_shared_run_keeps_the_device_busy_once():
    """Three requests in two runs: Triton's compute time counts the shared run for each request, and this one once."""
    session = open_rows(shut=True)
    model = model_of(session)
    asyncio.run(behind_a_run(session, model, [values(1), values(2)]))
    found = metrics_of(model)
    (alone, shared) = (model.statistics.batches[rows].compute_infer.ns for rows in (1, 3))

    assert (alone + shared) / 1e9 == found["demi_device_busy_seconds", (("device", "cpu"), *LABELS)]
    assert (alone + 2 * shared) // 1000 == found["nv_inference_compute_infer_duration_us", LABELS]


def test_histograms_add_up():
    """Histogram buckets are cumulative, and sums and counts match."""
    session = open_rows(shut=True)
    model = model_of(session)
    asyncio.run(behind_a_run(session, model, [values(1), values(2)]))
    found = metrics_of(model)

    def bucket(name: str, bound: str) -> float:
        return found[name + "_bucket", (("le", bound), *LABELS)]

    assert [1, 1, 2, 2] == [bucket("demi_batch_rows", bound) for bound in ("1.0", "2.0", "4.0", "+Inf")]
    assert (2, 4) == (found["demi_batch_rows_count", LABELS], found["demi_batch_rows_sum", LABELS])
    assert 3 == bucket("demi_queue_seconds", "+Inf") == found["demi_compute_seconds_count", LABELS]
    assert found["demi_queue_seconds_sum", LABELS] > 0.02


def test_requests_that_wait_and_models_that_failed():
    """The queue length is current; a failed bundle is listed as not ready."""

    async def waiting():
        session = open_rows(shut=True)
        model = model_of(session)
        failed = Model("bad", "2", ServeSettings(max_queue=1))
        failed.fail("damaged")
        with model.admitted():
            tasks = [ask(model, values(1))]
            await until(session.started.is_set)
            tasks += [ask(model, values(1)) for _ in range(3)]
            await asyncio.sleep(0.05)
            found = metrics_of(model, failed)
        session.gate.set()
        await asyncio.gather(*tasks)
        return found

    found = asyncio.run(waiting())

    assert 3 == found["demi_queue_length", LABELS] == found["nv_inference_pending_request_count", LABELS]
    assert 1 == found["demi_requests_in_flight", LABELS]
    assert 0 == found["demi_model_ready", (("model", "bad"), ("precision", ""), ("version", "2"))]


def test_counters_are_named_as_their_samples():
    """HELP and TYPE comments have the names of their samples."""
    text = write_metrics(create_registry(Repository([]))).decode()

    assert "# TYPE nv_inference_count counter" in text
    assert "nv_inference_count_total" not in text


def test_over_http(client):
    """A scrape includes the latest inference."""
    labels = (("model", "mixed"), ("precision", "fp16-in-fp32"), ("version", "1"))
    before = samples(client.get("/metrics").text)["nv_inference_request_success", labels]
    infer(client, ROW, "/v2/models/mixed/infer")
    response = client.get("/metrics")

    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert 1 == samples(response.text)["nv_inference_request_success", labels] - before
    assert "process_resident_memory_bytes" in response.text


def test_metrics_can_be_off(tmp_path):
    """With `--no-metrics` the path does not exist."""
    with serving(write_bundle(tmp_path / "b", SCALE), "--no-metrics") as server:
        assert 404 == httpx.get(server.url + "/metrics").status_code
