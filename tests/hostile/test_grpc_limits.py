"""gRPC messages that are small on the wire and large in memory, calls that leak, and streams that are not read."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from demi.server.errors import BodyTooLargeError, OverloadedError, RequestError
from demi.server.grpc.calls import MessageLimits
from demi.server.grpc.inference import ModelInferRequest, RepositoryModelLoadRequest
from demi.server.grpc.message_size import MESSAGE, check_weight, weigh
from demi.server.grpc.server import GrpcServer, channel_options
from demi.server.listening import bind
from demi.server.memory_limit import UNCOUNTED_BYTES, MemoryLimit
from demi.server.models.model import Model
from demi.server.models.repository import Repository
from demi.server.protocol.shared_memory import NO_SHARED_MEMORY
from demi.server.settings import ServeSettings
from tests.hostile.attack import MIB, held_connections, is_closed, is_live, peak_bytes, probed
from tests.server.bundles import SCALE, write_bundle
from tests.server.fakes import loaded, open_fake
from tests.server.grpc_client import INFERENCE, X
from tests.server.processes import serving

INFER = f"/{INFERENCE}/ModelInfer"
STREAM = f"/{INFERENCE}/ModelStreamInfer"
MANY = 2 * MIB
DEFAULTS = ServeSettings()


def field(number: int, value: bytes) -> bytes:
    """Return a length-delimited field: a text, a message, or packed numbers."""
    size, head = len(value), bytes([number << 3 | 2])
    while size > 127:
        head += bytes([size & 127 | 128])
        size >>= 7
    return head + bytes([size]) + value


def in_input(value: bytes) -> bytes:
    """Return an input with this field."""
    return field(5, value)


BOMBS = {
    "inputs": field(5, b"") * MANY,
    "inputs with a name": field(5, field(1, b"x")) * MANY,
    "outputs": field(6, b"") * MANY,
    "parameters": field(4, b"") * MANY,
    "raw entries": field(7, b"") * MANY,
    "parameters of an input": in_input(field(4, b"") * MANY),
    "texts": in_input(field(5, field(8, b"") * MANY)),
    "dimensions": in_input(b"\x18\x01" * MANY),
    "packed dimensions": in_input(field(3, b"\x01" * 4 * MANY)),
    "packed booleans": in_input(field(5, field(1, b"\x01" * 4 * MANY))),
    "packed integers": in_input(field(5, field(2, b"\x01" * 4 * MANY))),
    "packed floats": in_input(field(5, field(6, bytes(16 * MANY)))),
    "unknown numbers": b"\x78\x01" * MANY,
    "unknown groups": b"\x7b\x7c" * MANY,
}


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
def test_large_messages_are_refused_before_parsing(bomb):
    """Every way to put millions of values into a message is counted before parsing, and counting stops at the limit."""
    most = ServeSettings().max_parsed_bytes // 2
    with pytest.raises(BodyTooLargeError, match="--max-parsed"):
        check_weight(bomb, ModelInferRequest, most)

    assert most < weigh(bomb, ModelInferRequest, most) < most + len(bomb) * 41


def test_other_messages_are_estimated_as_well():
    """Other messages are estimated as well: a request to load a model has a map of parameters."""
    with pytest.raises(BodyTooLargeError):
        check_weight(field(3, b"") * MANY, RepositoryModelLoadRequest, MIB)


def test_raw_tensors_do_not_count():
    """Raw tensors do not count, because their bytes have a limit of their own."""
    message = ModelInferRequest(model_name="m", raw_input_contents=[bytes(8 * MIB)] * 3)
    for name in "abc":
        message.inputs.add(name=name, datatype="FP32", shape=[2, MIB])

    assert weigh(message.SerializeToString(), ModelInferRequest, MIB) < 20 * MESSAGE


@pytest.mark.parametrize(
    "data",
    [b"\x2a\x05abc", b"\x2a", b"\xff" * 20, b"\x2a" + b"\xff" * 9 + b"\x7f", b"\x0f\x00"],
    ids=["cut off", "without a length", "no key", "beyond the end", "no wire type"],
)
def test_damaged_messages(data):
    """A truncated or damaged message raises an error that says so."""
    with pytest.raises(RequestError, match="not a valid inference"):
        weigh(data, ModelInferRequest, MIB)


def test_nesting_is_bounded():
    """Messages are nested at most four deep; deeper nesting can only be in bytes, which are not parsed."""
    data = b""
    for _ in range(200):
        data = field(5, data)

    assert weigh(data, ModelInferRequest, MIB) < 200 * MESSAGE


def with_server(
    ask: Callable[[GrpcServer, MemoryLimit], Awaitable[object]], settings: ServeSettings = DEFAULTS
) -> object:
    """Return the result of a coroutine with a server of the model `double` on this event loop."""

    async def run() -> object:
        model = Model("double", "1", settings)
        model.start(loaded(open_fake()))
        repository = Repository([model])
        reserved = bind("127.0.0.1", 0)
        server = GrpcServer(reserved, repository, settings, None, NO_SHARED_MEMORY)
        await server.start()
        try:
            return await asyncio.wait_for(ask(server, server.memory_limit), 60)
        finally:
            await server.stop(0)
            repository.close(1)

    return asyncio.run(run())


def wrong(size: int = MIB) -> bytes:
    """Return a request whose tensor has many more bytes than its shape."""
    message = ModelInferRequest(model_name="double", raw_input_contents=[bytes(size)])
    message.inputs.add(name="x", datatype="FP32", shape=[1, 3])
    return message.SerializeToString()


def test_a_refused_call_frees_its_message():
    """The message of a refused call is freed at once, without the garbage collector."""
    data = wrong()

    async def ask(server: GrpcServer, memory_limit: MemoryLimit) -> tuple[set[str], int]:
        codes = set()
        async with grpc.aio.insecure_channel(server.address) as channel:
            call = channel.unary_unary(INFER)
            before = tracemalloc.get_traced_memory()[0]
            for _ in range(10):
                try:
                    await call(data)
                except grpc.aio.AioRpcError as error:
                    codes.add(error.code().name)
                    error.__traceback__ = None
                await asyncio.sleep(0)
            return codes, tracemalloc.get_traced_memory()[0] - before

    gc.collect()
    gc.disable()
    tracemalloc.start()
    try:
        codes, kept = with_server(ask)
    finally:
        tracemalloc.stop()
        gc.enable()

    assert {"INVALID_ARGUMENT"} == codes
    assert kept < 3 * MIB


def test_messages_in_flight_are_bounded():
    """A message that does not fit beside those in flight is refused; its memory is available afterwards."""

    async def ask(server: GrpcServer, memory_limit: MemoryLimit) -> tuple[str, int]:
        async with grpc.aio.insecure_channel(server.address) as channel:
            try:
                await channel.unary_unary(INFER)(wrong(2 * MIB))
            except grpc.aio.AioRpcError as error:
                return error.code().name, memory_limit.held
        return "OK", 0

    assert ("RESOURCE_EXHAUSTED", 0) == with_server(ask, ServeSettings(max_in_flight_bytes=MIB))


def test_reservations_are_released():
    """A reservation is released at the end of the block, and a refused one reserves nothing."""
    memory_limit = MemoryLimit(100)
    with memory_limit.reserve() as one, memory_limit.reserve() as other:
        one.add(60)
        with pytest.raises(OverloadedError, match="--max-in-flight"):
            other.add(41)
        other.add(40)
        assert 100 == memory_limit.held

    assert 0 == memory_limit.held
    assert MessageLimits().max_parsed_bytes > 2**60


def test_a_stream_that_is_not_read():
    """A stream whose client does not read is read up to the largest body; pending answers are dropped at its timeout."""
    settings = ServeSettings(max_body_bytes=MIB // 2, client_timeout_s=0.5)

    async def ask(server: GrpcServer, memory_limit: MemoryLimit) -> list[int]:
        found = []
        options = [("grpc.http2.lookahead_bytes", 65536), ("grpc.http2.bdp_probe", 0)]
        async with grpc.aio.insecure_channel(server.address, options=options) as channel:
            stream = channel.stream_stream(STREAM)()
            sending = asyncio.create_task(flood(stream))
            await until(lambda: memory_limit.held >= MIB // 2)
            for _ in range(20):
                await asyncio.sleep(0.01)
                found.append(memory_limit.held)
            await until(lambda: memory_limit.held < MIB // 4)
            found.append(memory_limit.held)
            sending.cancel()
        await until(lambda: memory_limit.held == 0)
        return found

    *held_before, held_late = with_server(ask, settings)

    assert max(held_before) <= MIB
    assert held_late < MIB // 8


async def until(is_so: Callable[[], bool]) -> None:
    """Wait for a condition; the test's own timeout limits it."""
    while not is_so():
        await asyncio.sleep(0.01)


async def flood(stream: grpc.aio.StreamStreamCall) -> None:
    """Send as many requests as a stream accepts; each has an answer of its own size."""
    message = ModelInferRequest(
        model_name="double", id="i" * (UNCOUNTED_BYTES + 1000), raw_input_contents=[X.tobytes()]
    )
    message.inputs.add(name="x", datatype="FP32", shape=[1, 3])
    while True:
        await stream.write(message.SerializeToString())


@pytest.fixture(scope="module")
def victim(tmp_path_factory):
    """Return a server with default limits, except for connections and slow clients."""
    folder = tmp_path_factory.mktemp("models")
    with serving(write_bundle(folder / "scale", SCALE), "--max-connections", "20", "--client-timeout", "2") as server:
        yield server


def test_compressed_bombs_are_refused(victim):
    """Three bombs at once, 60 KiB that unpack to 31 million inputs, are refused, and probes are answered meanwhile."""
    bomb = field(5, b"") * (31 * MIB)
    before = peak_bytes(victim)

    def send() -> str:
        with grpc.insecure_channel(victim.grpc, options=[("grpc.max_send_message_length", -1)]) as channel:
            with pytest.raises(grpc.RpcError) as caught:
                channel.unary_unary(INFER)(bomb, timeout=60, compression=grpc.Compression.Gzip)
            return caught.value.code().name

    def attack() -> list[str]:
        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(lambda _: send(), range(2)))

    assert ["RESOURCE_EXHAUSTED"] * 2 == probed(victim, attack)
    assert peak_bytes(victim) - before < 512 * MIB


def test_connections_are_bounded(victim):
    """Connections beyond --max-connections are closed at once, and silent ones a little later."""
    with held_connections(victim.grpc, 25) as connections:
        late = [is_closed(connection, 1) for connection in connections[-5:]]
        assert is_live(victim)
        early = [is_closed(connection) for connection in connections[:20]]

    assert [True] * 5 == late
    assert [True] * 20 == early


def test_the_limits_follow_the_settings():
    """0 means no limit, as for other settings."""
    unlimited = dict(channel_options(ServeSettings(max_connections=0, client_timeout_s=0.0)))

    assert 1000 == dict(channel_options(ServeSettings()))["grpc.max_allowed_incoming_connections"]
    assert 2**31 - 1 == unlimited["grpc.max_allowed_incoming_connections"]
    assert 2**31 - 1 == unlimited["grpc.server_handshake_timeout_ms"]
