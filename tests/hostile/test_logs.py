"""Every line of the log is one record, whatever the names of models and the bytes of clients contain."""

from __future__ import annotations

import contextlib
import logging
import signal
import socket
import sys
import time

import grpc
import numpy as np
import orjson
import pytest
import trustme

from demi.server.grpc.inference import ModelInferRequest
from demi.server.telemetry.logs import ConsoleFormatter, JsonFormatter
from tests.hostile.wire import exchange, request
from tests.server.bundles import SCALE, write_bundle
from tests.server.processes import serving

EVIL = "a\n2026-11-30 00:00:00,000 INFO forged\r\x1b]0;pwned\x07\x1b[2J\x9b2J\u202e\u2028"
COMMANDS = "\x1b\x07\r\x9b\u202e\u2028\u2066"

GATHER = """gather (float[batch, 2] x) => (float[batch, 2] y)
<float[4] t = {0, 0, 0, 0}>
{ i = Cast<to = 7>(x)
  y = Gather(t, i) }"""
"""A model that fails at run time for an index beyond its table."""


def evil_bundle(folder):
    """Return a bundle whose failing node has a name with terminal escapes and a forged log line."""
    import onnx

    from demi.bundles.bundle import open_bundle, write_manifest
    from demi.bundles.manifest import MODEL

    bundle = write_bundle(folder / "gather" / "1", GATHER)
    model = onnx.load(bundle / MODEL)
    model.graph.node[1].name = EVIL
    onnx.save(model, bundle / MODEL)
    write_manifest(bundle, open_bundle(bundle, verify=False).manifest)


def request_for(value: float) -> bytes:
    """Return a request for this index of the table."""
    entry = {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [value, value]}
    return orjson.dumps({"inputs": [entry], "id": EVIL})


@pytest.mark.parametrize("form", ["json", "console"])
def test_a_log_cannot_be_forged(tmp_path, form):
    """Names in a model, in paths and in headers add no line that is not a record, and no escape sequence."""
    evil_bundle(tmp_path)
    with serving(tmp_path, "--log-format", form, "--access-log") as server:
        infer = "/v2/models/gather/infer"
        for value in (99, 98):
            assert 400 == exchange(server, request("POST", infer, body=request_for(value)))[0].status
        for path in (infer.replace("gather", "a%0aforged%1b%5b2J%c2%9b"), "/a%0a2026-11-30%20forged%e2%80%a8"):
            assert (
                404 == exchange(server, request("POST", path, [("X-Request-Id", "\x9b2J")], request_for(0)))[0].status
            )
        assert server.said("forged")
        written = server.log

    lines = written.split("\n")[:-1]
    assert not set(COMMANDS) & set(written)
    assert not any(line.startswith(("2026-11-30 00:00:00", "forged", "2026-11-30 forged")) for line in lines)
    if form == "json":
        assert all(isinstance(orjson.loads(line), dict) for line in lines)
    assert "onnxruntime:" not in written


def record(message: str, *args: object, error: BaseException | None = None) -> logging.LogRecord:
    """Return a record with the traceback of an error."""
    trace = (type(error), error, None) if error else None
    return logging.LogRecord("demi.server", logging.ERROR, "here.py", 1, message, args, trace)


def test_tracebacks_belong_to_their_record():
    """Lines of a traceback cannot be mistaken for records, whatever the error's message."""
    written = ConsoleFormatter().format(record("failed: %s", EVIL, error=ValueError(EVIL)))

    first, *rest = written.split("\n")
    assert "failed: a\\n2026" in first
    assert rest
    assert all(line.startswith("  | ") for line in rest)
    assert not set(COMMANDS) & set(written)


def test_json_records_round_trip():
    """Control characters are escaped in JSON records and restored when parsed."""
    written = JsonFormatter().format(record("name=%s", EVIL, error=ValueError(EVIL)))

    assert "\n" not in written
    assert not set(COMMANDS) & set(written)
    assert EVIL == orjson.loads(written)["name"]


def test_a_cancelled_stream_is_not_an_error(victim):
    """A client that reads no answers and leaves causes no log line."""
    message = ModelInferRequest(model_name="scale")
    message.inputs.add(name="x", datatype="FP32", shape=[65536, 3])
    message.raw_input_contents.append(np.zeros((65536, 3), np.float32).tobytes())
    before = len(victim.log)
    with grpc.insecure_channel(victim.grpc) as channel:
        ask = channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")
        for _ in range(3):
            call = ask(message.SerializeToString() for _ in range(20))
            time.sleep(0.3)
            call.cancel()
    time.sleep(0.3)

    assert "ERROR" not in victim.log[before:], victim.log[before:]
    assert "Traceback" not in victim.log[before:]


def test_exceptions_of_threads_are_logged(monkeypatch):
    """An exception that ends a thread is logged as a record instead of being printed by Python."""
    import threading

    from demi.server.telemetry.logs import log_uncaught_errors

    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    seen: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = seen.append  # type: ignore[method-assign]
    log = logging.getLogger("demi.server")
    log.addHandler(handler)
    try:
        log_uncaught_errors()
        thread = threading.Thread(target=lambda: 1 / 0)
        thread.start()
        thread.join()
    finally:
        log.removeHandler(handler)
        logging.captureWarnings(False)

    assert ["uncaught error in a thread"] == [each.getMessage() for each in seen]


def test_other_protocols_on_the_grpc_port_are_not_logged(tmp_path):
    """Other protocols on the gRPC port, with TLS or without, are refused without log lines of the library."""
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    issued.private_key_pem.write_to_path(tmp_path / "key.pem")
    for pem in issued.cert_chain_pems:
        pem.write_to_path(tmp_path / "cert.pem", append=True)
    models = write_bundle(tmp_path / "models", SCALE)
    for flags in ((), ("--tls-cert", str(tmp_path / "cert.pem"), "--tls-key", str(tmp_path / "key.pem"))):
        with serving(models, "--log-format", "json", *flags) as server:
            for words in (
                b"\x16\x03\x01\x00\x05hello\x1b[2J",
                b"GET / HTTP/1.1\r\n\r\n",
                b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nx\x1b[2J" * 9,
            ):
                with socket.create_connection(("127.0.0.1", int(server.grpc.rsplit(":", 1)[1])), 5) as connection:
                    connection.sendall(words)
                    connection.shutdown(socket.SHUT_WR)
                    with contextlib.suppress(ConnectionError):
                        while connection.recv(65536):
                            pass
            server.stop(signal.SIGTERM)
        assert all(isinstance(orjson.loads(line), dict) for line in server.log.split("\n")[:-1])
