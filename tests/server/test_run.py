"""`demi serve` as a process: start, shutdown, and exit codes if it cannot start."""

from __future__ import annotations

import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from demi.bundles.manifest import MODEL
from tests.server.bundles import FRAGILE, MIXED, SCALE, SLOW, damage, write_bundle
from tests.server.http.test_infer import slow_message
from tests.server.processes import run_serve, serving

SLOW_PATH = "/v2/models/slow/infer"


def wait_until_refused(url: str) -> httpx.Response:
    """Poll readiness until the status is no longer 200; return that answer."""
    stop = time.monotonic() + 10
    while time.monotonic() < stop:
        response = httpx.get(url + "/v2/health/ready")
        if response.status_code != 200:
            return response
        time.sleep(0.01)
    raise AssertionError("the server stayed ready")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_running_request_is_answered_before_the_end(tmp_path, number):
    """After a signal new requests get 503 while the running one is answered; then the exit code is 0."""
    with serving(write_bundle(tmp_path / "b", SLOW)) as server, ThreadPoolExecutor(1) as pool:
        running = pool.submit(httpx.post, server.url + SLOW_PATH, content=slow_message(4.0), timeout=60)
        time.sleep(0.3)
        server.process.send_signal(number)
        not_ready = wait_until_refused(server.url)
        late = httpx.post(server.url + SLOW_PATH, content=slow_message(0))

        assert not running.done(), "the request was too short to be running"
        assert 503 == not_ready.status_code
        assert 503 == late.status_code
        assert "shutting down" in late.json()["error"]
        assert "1" == late.headers["retry-after"]
        assert 200 == running.result().status_code
        assert 0 == server.wait()
        assert "stopped" in server.log


def test_sigterm_under_load(tmp_path):
    """Under load each accepted request is answered, others get 503, and the exit code is 0."""
    body = slow_message(0.01)
    answers: list[tuple[float, int]] = []
    broken: list[tuple[float, Exception]] = []

    def send_on(client: httpx.Client) -> None:
        while True:
            sent = time.monotonic()
            try:
                answers.append((sent, client.post(SLOW_PATH, content=body).status_code))
            except httpx.HTTPError as error:
                broken.append((sent, error))
                return

    with serving(write_bundle(tmp_path / "b", SLOW)) as server, ThreadPoolExecutor(8) as pool:
        clients = [httpx.Client(base_url=server.url, timeout=20, verify=False) for _ in range(8)]
        running = [pool.submit(send_on, client) for client in clients]
        while len(answers) < 16:
            time.sleep(0.01)
        stopped = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        code = server.wait()
        [sending.result() for sending in running]

    statuses = {status for _, status in answers}
    accepted = [error for sent, error in broken if sent < stopped]
    assert 0 == code
    assert {200, 503} == statuses, statuses
    assert [] == accepted, "a request that was sent before the signal had no answer"
    assert 8 == len(broken)  # each client went on until nobody listened any more


def test_an_idle_server_ends_at_once(tmp_path):
    """Without requests a signal ends the process within about a second, despite open connections."""
    with serving(write_bundle(tmp_path / "b", SCALE)) as server, httpx.Client(base_url=server.url) as client:
        client.get("/v2")
        started = time.monotonic()

        assert 0 == server.stop(signal.SIGTERM)
        assert time.monotonic() - started < 3


def test_draining_has_a_time_limit(tmp_path):
    """A request that outlasts --drain does not keep the process alive; the exit code is still 0."""
    with serving(write_bundle(tmp_path / "b", SLOW), "--drain", "0.2") as server, ThreadPoolExecutor(1) as pool:
        running = pool.submit(httpx.post, server.url + SLOW_PATH, content=slow_message(20), timeout=30)
        time.sleep(0.3)
        started = time.monotonic()

        assert 0 == server.stop(signal.SIGTERM)
        assert time.monotonic() - started < 8
        assert "stopping with 1 requests unanswered" in server.log
        with pytest.raises(httpx.HTTPError):
            running.result().raise_for_status()


def test_full_queue_answers_retry_after(tmp_path):
    """One request runs, one waits, and the third gets 503 with Retry-After."""
    with serving(write_bundle(tmp_path / "b", SLOW), "--max-queue", "1") as server, ThreadPoolExecutor(3) as pool:
        url = server.url + SLOW_PATH
        answers = []
        for _ in range(3):
            answers.append(pool.submit(httpx.post, url, content=slow_message(0.8), timeout=20))
            time.sleep(0.15)
        first, second, third = (answer.result() for answer in answers)

    assert (200, 200, 503) == (first.status_code, second.status_code, third.status_code)
    assert "1" == third.headers["retry-after"]
    assert "queue is full" in third.json()["error"]


def test_default_timeout(tmp_path):
    """`--timeout` applies to requests that do not set their own."""
    with serving(write_bundle(tmp_path / "b", SLOW), "--timeout", "0.05") as server:
        late = httpx.post(server.url + SLOW_PATH, content=slow_message(0.5))
        own = httpx.post(server.url + SLOW_PATH, content=slow_message(0, timeout=10_000_000), timeout=20)

    assert (504, 200) == (late.status_code, own.status_code)


def test_non_finite_answers_can_be_refused(tmp_path):
    """With `--non-finite error` a NaN in a JSON answer is an error that suggests binary output."""
    text = SCALE.replace("Mul(x, w)", "Div(x, x)").replace("<float[3] w = {2.0, 3.0, 4.0}>\n", "")
    body = b'{"inputs":[{"name":"x","shape":[1,3],"datatype":"FP32","data":[0,1,2]}]}'
    with serving(write_bundle(tmp_path / "b", text, reference=text), "--non-finite", "error") as server:
        response = httpx.post(server.url + "/v2/models/scale/infer", content=body)

    assert 400 == response.status_code
    assert "binary" in response.json()["error"]


def test_bf16_without_a_gpu_is_served_in_fp32(tmp_path):
    """A bf16 bundle on the CPU is served by its FP32 reference, as metadata and log report."""
    path = write_bundle(tmp_path / "b", MIXED, precision="bf16", reference=SCALE)
    with serving(path, "--precision", "auto") as server:
        metadata = httpx.get(server.url + "/v2/models/mixed").json()

    assert "fp32" == metadata["parameters"]["precision"]
    assert "the FP32 reference serves" in server.log


def test_start_message(tmp_path):
    """The start message contains addresses, device, models, and those that failed."""
    write_bundle(tmp_path / "scale" / "1", SCALE)
    damage(write_bundle(tmp_path / "bad" / "1", FRAGILE, name="bad") / MODEL)
    with serving(tmp_path) as server:
        assert f"serving url={server.url} grpc={server.grpc} device=cpu models=scale/1 failed=bad/1\n" in server.log
        assert "name=bad version=1" in server.log


def test_a_port_in_use(tmp_path):
    """A port in use is exit code 2; the error contains the address and what to do."""
    path = write_bundle(tmp_path / "b", SCALE)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = run_serve(str(path), "--port", str(port))

    assert 2 == ended.returncode
    assert f"error: cannot listen on 127.0.0.1:{port}: Address already in use" in ended.stderr
    assert "hint: " in ended.stderr


def test_nothing_to_serve(tmp_path):
    """A missing folder, an empty one, or damaged bundles only: exit code 2 with the reason."""
    assert (2, "no such folder") == failure(run_serve(str(tmp_path / "none")), "no such folder")
    (tmp_path / "empty").mkdir()
    assert (2, "no bundle") == failure(run_serve(str(tmp_path / "empty")), "no bundle")
    damage(write_bundle(tmp_path / "bad" / "1", SCALE, name="bad") / MODEL)
    assert (2, "digest differs") == failure(run_serve(str(tmp_path)), "digest differs")


def test_same_port_for_http_and_grpc(tmp_path):
    """One port for HTTP and gRPC is an error before models load."""
    path = write_bundle(tmp_path / "b", SCALE)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
    ended = run_serve(str(path), "--port", port, "--grpc-port", port)

    assert (2, "cannot serve both HTTP and gRPC") == failure(ended, "cannot serve both HTTP and gRPC")
    assert "model loaded" not in ended.stderr


def test_unwritable_folder_for_guarded_inputs(tmp_path):
    """A folder that cannot be written is an error at the start, not a warning when the first inputs are lost."""
    path = write_bundle(tmp_path / "b", SCALE)
    (tmp_path / "file").touch()
    ended = run_serve(str(path), "--keep-guarded", str(tmp_path / "file" / "kept"))

    assert (2, "cannot be written") == failure(ended, "cannot be written")


def test_shadow_share_of_an_unknown_model(tmp_path):
    """A share for an unknown model is a warning: the model may be added later, or is misspelt."""
    write_bundle(tmp_path / "scale" / "1", SCALE)
    with serving(tmp_path, "--shadow", "0.1,scale=0.5,scael=1") as server:
        assert server.said("--shadow names an unknown model: name=scael\n")
        assert "name=scale\n" not in server.log


def test_missing_gpu(tmp_path):
    """A GPU that does not exist is exit code 3; no machine has a hundred."""
    path = write_bundle(tmp_path / "b", SCALE)

    assert (3, "`cuda:99`") == failure(run_serve(str(path), DEMI_DEVICE="cuda:99"), "`cuda:99`")


def failure(ended, words: str) -> tuple[int, str]:
    """Return the exit code, and `words` if the only error message contains them, else all of stderr."""
    assert 1 == ended.stderr.count("\nerror: ") + ended.stderr.startswith("error: ")
    assert "Traceback" not in ended.stderr
    return ended.returncode, words if words in ended.stderr else ended.stderr
