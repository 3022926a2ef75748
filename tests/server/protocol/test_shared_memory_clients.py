"""Shared memory through tritonclient over HTTP and gRPC, with a real server."""

from __future__ import annotations

import os
from collections.abc import Iterator
from types import ModuleType
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
import tritonclient.utils.shared_memory as shm
from tritonclient.utils import InferenceServerException, serialize_byte_tensor

from tests.server.bundles import SCALE, write_bundle
from tests.server.processes import ServerProcess, serving

X = np.array([[1, 2, 3]], np.float32)
TEXT = """text (string[batch, 2] x) => (string[batch, 2] y)
{ y = Identity(x) }"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """Start a server that allows shared memory."""
    root = tmp_path_factory.mktemp("models")
    write_bundle(root / "scale" / "1", SCALE)
    write_bundle(root / "text" / "1", TEXT)
    with serving(root, "--allow-shared-memory") as process:
        yield process


@pytest.fixture(params=[triton_http, triton_grpc], ids=["http", "grpc"])
def triton(request) -> ModuleType:
    """Return the client package of either protocol."""
    return request.param


@pytest.fixture
def client(server, triton) -> Iterator[object]:
    """Open a client of the server."""
    address = urlsplit(server.url).netloc if triton is triton_http else server.grpc
    client = triton.InferenceServerClient(address)
    yield client
    client.unregister_system_shared_memory()
    client.close()


@pytest.fixture
def region() -> Iterator[object]:
    """Create a kilobyte of shared memory with tritonclient."""
    handle = shm.create_shared_memory_region("region", f"/demi-{os.getpid()}", 1024)
    yield handle
    shm.destroy_shared_memory_region(handle)


def test_input_and_output(client, triton, region):
    """Inputs and outputs are both in one region."""
    shm.set_shared_memory_region(region, [X])
    client.register_system_shared_memory("region", f"/demi-{os.getpid()}", 1024)
    x, y = triton.InferInput("x", [1, 3], "FP32"), triton.InferRequestedOutput("y")
    x.set_shared_memory("region", 12)
    y.set_shared_memory("region", 12, offset=512)
    result = client.infer("scale", [x], outputs=[y])

    assert result.get_output("y") is not None
    assert [[2, 6, 12]] == shm.get_contents_as_numpy(region, np.float32, [1, 3], offset=512).tolist()


def test_strings(client, triton, region):
    """BYTES in shared memory have the wire format, each element after its length."""
    shm.set_shared_memory_region(region, [serialize_byte_tensor(np.array([["grün", ""]], object))])
    client.register_system_shared_memory("region", f"/demi-{os.getpid()}", 1024)
    x, y = triton.InferInput("x", [1, 2], "BYTES"), triton.InferRequestedOutput("y")
    x.set_shared_memory("region", 4 + 5 + 4)
    y.set_shared_memory("region", 512, offset=512)
    client.infer("text", [x], outputs=[y])

    assert [["grün".encode(), b""]] == shm.get_contents_as_numpy(region, np.object_, [1, 2], offset=512).tolist()


def test_only_one_output_in_shared_memory(client, triton, region):
    """An output that is not in shared memory is returned in the answer."""
    shm.set_shared_memory_region(region, [X])
    client.register_system_shared_memory("region", f"/demi-{os.getpid()}", 1024)
    x = triton.InferInput("x", [1, 3], "FP32")
    x.set_shared_memory("region", 12)

    assert [[2, 6, 12]] == client.infer("scale", [x]).as_numpy("y").tolist()


def test_status_and_errors(client, triton, region):
    """Registered regions are listed; invalid requests are errors."""
    client.register_system_shared_memory("region", f"/demi-{os.getpid()}", 1024)
    status = client.get_system_shared_memory_status()
    names = [row["name"] for row in status] if triton is triton_http else list(status.regions)
    x = triton.InferInput("x", [1, 3], "FP32")
    x.set_shared_memory("other", 12)

    assert ["region"] == names
    with pytest.raises(InferenceServerException, match="does not give a registered region"):
        client.infer("scale", [x])
    with pytest.raises(InferenceServerException, match="cannot open shared memory object"):
        client.register_system_shared_memory("more", "/demi-nothing-there", 1)
    client.unregister_system_shared_memory("region")
    with pytest.raises(InferenceServerException, match="unknown shared memory region"):
        client.get_system_shared_memory_status("region")


def test_the_extension_is_announced(server, client, triton):
    """The metadata lists the extension, which load generators check."""
    metadata = client.get_server_metadata()

    assert "system_shared_memory" in (metadata["extensions"] if triton is triton_http else metadata.extensions)
    assert "system_shared_memory" in httpx.get(server.url + "/v2").json()["extensions"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("", "does not follow the protocol"),
        ("[]", "does not follow the protocol"),
        ("{}", "the request has no `key`"),
        ('{"key": "/a"}', "the request has no `byte_size`"),
        ('{"key": 1, "byte_size": 1}', "does not follow the protocol"),
        ("\xff", "does not follow the protocol"),
    ],
)
def test_invalid_register_body(server, body, words):
    """A request to register without key and size is refused."""
    response = httpx.post(server.url + "/v2/systemsharedmemory/region/r/register", content=body)

    assert 400 == response.status_code
    assert words in response.json()["error"]


def test_cuda_over_http(server):
    """CUDA shared memory has no regions and cannot be registered."""
    base = server.url + "/v2/cudasharedmemory"

    assert [] == httpx.get(base + "/status").json()
    assert 200 == httpx.post(base + "/unregister").status_code
    assert 404 == httpx.get(base + "/region/r/status").status_code
    assert 501 == httpx.post(base + "/region/r/register", content="{}").status_code
