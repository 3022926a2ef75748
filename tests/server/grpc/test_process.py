"""gRPC in a server process: its port, deadlines, cancelled calls, and draining."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator

import grpc
import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton

from demi.server.grpc.inference import ModelInferRequest, ServerLiveRequest, ServerReadyRequest
from tests.server.bundles import SCALE, SLOW, slow_turns, write_bundle
from tests.server.grpc_client import method, refused
from tests.server.processes import ServerProcess, run_serve, serving


def slow_request(seconds: float) -> ModelInferRequest:
    """Return a request that keeps the model `slow` busy for about that many seconds."""
    turns = np.array(slow_turns(seconds) if seconds else 0)
    request = ModelInferRequest(model_name="slow")
    request.inputs.add(name="turns", datatype="INT64", shape=[])
    request.inputs.add(name="x", datatype="FP32", shape=[256, 256])
    request.raw_input_contents.extend([turns.tobytes(), np.ones((256, 256), np.float32).tobytes()])
    return request


@pytest.fixture(scope="module")
def slow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """Start a server with the slow model and a queue of one."""
    path = write_bundle(tmp_path_factory.mktemp("slow") / "b", SLOW)
    with serving(path, "--max-queue", "1") as server:
        yield server


@pytest.fixture
def channel(slow_server) -> Iterator[grpc.Channel]:
    """Open a plain channel to it."""
    with grpc.insecure_channel(slow_server.grpc) as channel:
        yield channel


def counts(server: ServerProcess) -> tuple[int, int]:
    """Return the numbers of runs and of failed requests."""
    stats = httpx.get(server.url + "/v2/models/slow/stats").json()["model_stats"][0]
    return stats["execution_count"], stats["inference_stats"]["fail"]["count"]


def at_work(server: ServerProcess) -> tuple[int, int]:
    """Return how many requests the slow model has admitted, and how many of them wait."""
    text = httpx.get(server.url + "/metrics").text
    names = ("demi_requests_in_flight", "demi_queue_length")
    found = [re.search(rf"^{name}{{.*?}} (\d+)", text, re.MULTILINE) for name in names]
    return tuple(int(float(match[1])) for match in found if match)


def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition."""
    stop = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < stop, "the condition did not come true"
        time.sleep(0.01)


def test_cancelled_call_is_not_run(slow_server, channel):
    """A call cancelled in the queue counts as failed, and the model does not run for it."""
    runs, fails = counts(slow_server)
    first = method(channel, "ModelInfer").future(slow_request(1.5))
    until(lambda: at_work(slow_server) == (1, 0))
    second = method(channel, "ModelInfer").future(slow_request(1.5))
    until(lambda: at_work(slow_server) == (2, 1))
    second.cancel()
    until(lambda: counts(slow_server)[1] == fails + 1)

    assert first.result().outputs[0].name == "y"
    assert (runs + 1, fails + 1) == counts(slow_server)


def test_the_deadline_of_a_call_is_that_of_its_request(slow_server, channel):
    """A request whose call deadline has passed is not run."""
    runs, fails = counts(slow_server)
    first = method(channel, "ModelInfer").future(slow_request(1.5))
    until(lambda: at_work(slow_server) == (1, 0))
    with pytest.raises(grpc.RpcError) as caught:
        method(channel, "ModelInfer")(slow_request(1.5), timeout=0.2)

    assert grpc.StatusCode.DEADLINE_EXCEEDED == caught.value.code()
    assert first.result().outputs[0].name == "y"
    until(lambda: counts(slow_server)[1] == fails + 1)
    assert (runs + 1, fails + 1) == counts(slow_server)


def test_a_full_queue(slow_server, channel):
    """One request runs, one waits, and the next is UNAVAILABLE."""
    first = method(channel, "ModelInfer").future(slow_request(1.5))
    until(lambda: at_work(slow_server) == (1, 0))
    second = method(channel, "ModelInfer").future(slow_request(0))
    until(lambda: at_work(slow_server) == (2, 1))

    assert ("UNAVAILABLE", True) == unavailable(channel, "queue is full")
    assert "y" == first.result().outputs[0].name == second.result().outputs[0].name


def unavailable(channel: grpc.Channel, words: str) -> tuple[str, bool]:
    """Return the code of a refused request, and whether its message contains these words."""
    code, text = refused(channel, slow_request(0))
    return code, words in text


def test_abandoned_stream(slow_server, channel):
    """If the caller of a stream leaves, its requests are dropped and the server continues."""
    _, fails = counts(slow_server)
    client = triton.InferenceServerClient(slow_server.grpc)
    client.start_stream(callback=lambda result, error: None)
    first = method(channel, "ModelInfer").future(slow_request(1.5))
    until(lambda: at_work(slow_server) == (1, 0))
    turns, x = triton.InferInput("turns", [], "INT64"), triton.InferInput("x", [256, 256], "FP32")
    turns.set_data_from_numpy(np.array(1))
    x.set_data_from_numpy(np.ones((256, 256), np.float32))
    client.async_stream_infer("slow", [turns, x])
    until(lambda: at_work(slow_server) == (2, 1))
    client.stop_stream(cancel_requests=True)

    until(lambda: counts(slow_server)[1] == fails + 1)
    assert "y" == first.result().outputs[0].name
    assert "Traceback" not in slow_server.log


def test_a_running_request_is_answered_before_the_end(tmp_path):
    """After SIGTERM new requests are UNAVAILABLE while the running one is answered; then the exit code is 0."""
    with (
        serving(write_bundle(tmp_path / "b", SLOW)) as server,
        grpc.insecure_channel(server.grpc) as channel,
    ):
        running = method(channel, "ModelInfer").future(slow_request(1.5))
        until(lambda: at_work(server) == (1, 0))
        server.process.send_signal(signal.SIGTERM)
        until(lambda: not method(channel, "ServerReady")(ServerReadyRequest()).ready)

        assert ("UNAVAILABLE", True) == unavailable(channel, "shutting down")
        assert not running.done(), "the request was too short to be running"
        assert "y" == running.result().outputs[0].name
        assert 0 == server.wait()


def test_under_load_every_accepted_request_is_answered(tmp_path):
    """After SIGTERM under load, each call is answered or UNAVAILABLE, and the exit code is 0."""
    request = slow_request(0.02)

    async def ask(infer: Callable[..., Awaitable[object]], codes: list[str]) -> None:
        while codes[-1:] != ["UNAVAILABLE"]:
            try:
                await infer(request)
                codes.append("OK")
            except grpc.aio.AioRpcError as error:
                codes.append(error.code().name)

    async def load(server: ServerProcess) -> list[list[str]]:
        callers: list[list[str]] = [[] for _ in range(8)]
        async with grpc.aio.insecure_channel(server.grpc) as channel:
            asking = [asyncio.create_task(ask(method(channel, "ModelInfer"), codes)) for codes in callers]
            while not all(callers):
                await asyncio.sleep(0.01)
            server.process.send_signal(signal.SIGTERM)
            await asyncio.gather(*asking)
        return callers

    with serving(write_bundle(tmp_path / "b", SLOW)) as server:
        callers = asyncio.run(load(server))
        code = server.wait()

    assert 0 == code
    assert [] == [codes for codes in callers if codes != ["OK"] * (len(codes) - 1) + ["UNAVAILABLE"]]


def test_an_idle_stream_does_not_keep_the_server(tmp_path):
    """An idle stream does not delay the end after SIGTERM; the exit code is 0."""
    with serving(write_bundle(tmp_path / "b", SCALE)) as server:
        client = triton.InferenceServerClient(server.grpc)
        client.start_stream(callback=lambda result, error: None)
        assert client.is_server_live()

        assert 0 == server.stop(signal.SIGTERM)
        assert "Traceback" not in server.log
        client.stop_stream()


def test_without_grpc(tmp_path):
    """`--no-grpc` opens no second port."""
    with serving(write_bundle(tmp_path / "b", SCALE), "--no-grpc") as server:
        assert "off" == server.grpc
        assert 200 == httpx.get(server.url + "/v2/health/ready").status_code


def test_grpc_port(tmp_path):
    """`--grpc-port` sets the port, which the start message contains."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with (
        serving(write_bundle(tmp_path / "b", SCALE), "--grpc-port", str(port)) as server,
        grpc.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        assert f"127.0.0.1:{port}" == server.grpc
        assert method(channel, "ServerLive")(ServerLiveRequest(), wait_for_ready=True, timeout=10).live


def test_a_port_in_use(tmp_path):
    """A port in use is exit code 2 before models load; the error names the flags that help."""
    path = write_bundle(tmp_path / "b", SCALE)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = run_serve(str(path), "--port", "0", "--grpc-port", str(port))

    assert 2 == ended.returncode
    assert f"error: cannot listen on 127.0.0.1:{port}: Address already in use" in ended.stderr
    assert "--grpc-port, or --no-grpc" in ended.stderr
    assert "model loaded" not in ended.stderr


def test_two_servers_never_share_a_port(tmp_path):
    """The port of another gRPC server counts as in use, though the kernel could share it."""
    path = write_bundle(tmp_path / "b", SCALE)
    with serving(path) as server:
        ended = run_serve(str(path), "--port", "0", "--grpc-port", server.grpc.rsplit(":", 1)[1])

    assert (2, True) == (ended.returncode, "Address already in use" in ended.stderr)


def test_missing_package(tmp_path):
    """Without grpcio the error names the extra to install, and --no-grpc."""
    (tmp_path / "grpc.py").write_text("raise ImportError('no grpc')")
    path = write_bundle(tmp_path / "b", SCALE)
    ended = run_serve(
        str(path),
        "--port",
        "0",
        PYTHONPATH=os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]),
    )

    assert 3 == ended.returncode
    assert "`grpcio`" in ended.stderr
    assert "demi-inference[server]" in ended.stderr
    assert "--no-grpc" in ended.stderr


def test_grpc_is_imported_only_where_it_is_on():
    """Without gRPC, grpcio is not imported."""
    code = "import demi.server.run, sys; assert not {'grpc', 'google.protobuf'} & set(sys.modules)"

    subprocess.run([sys.executable, "-c", code], check=True)
