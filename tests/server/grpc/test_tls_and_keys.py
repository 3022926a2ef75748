"""TLS and API keys protect HTTP and gRPC alike."""

from __future__ import annotations

import httpx
import pytest
import tritonclient.grpc as triton
import trustme
from tritonclient.utils import InferenceServerException

from tests.server.bundles import SCALE, write_bundle
from tests.server.grpc_client import X, given
from tests.server.processes import serving

KEY = "a-key-of-more-than-sixteen-characters"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    """Start a server with TLS and an API key; also return the file of its certificate authority."""
    folder = tmp_path_factory.mktemp("guarded")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    issued = authority.issue_cert("127.0.0.1")
    issued.private_key_pem.write_to_path(folder / "key.pem")
    for blob in issued.cert_chain_pems:
        blob.write_to_path(folder / "cert.pem", append=True)
    (folder / "keys").write_text(KEY)
    (folder / "keys").chmod(0o600)
    write_bundle(folder / "models" / "scale" / "1", SCALE)
    flags = ["--api-key-file", "keys", "--tls-cert", "cert.pem", "--tls-key", "key.pem"]
    paths = [flag if flag.startswith("--") else str(folder / flag) for flag in flags]
    with serving(folder / "models", *paths) as server:
        yield server, str(folder / "ca.pem")


def test_request_with_key(guarded):
    """gRPC answers over TLS with the key."""
    server, authority = guarded
    client = triton.InferenceServerClient(server.grpc, ssl=True, root_certificates=authority)
    result = client.infer("scale", [given("x", X, "FP32")], headers={"authorization": f"Bearer {KEY}"})

    assert [[2, 6, 12]] == result.as_numpy("y").tolist()


def test_request_without_key_is_refused(guarded):
    """Without the key gRPC is UNAUTHENTICATED and HTTP 401, except for liveness."""
    server, authority = guarded
    client = triton.InferenceServerClient(server.grpc, ssl=True, root_certificates=authority)
    with pytest.raises(InferenceServerException) as caught:
        client.infer("scale", [given("x", X, "FP32")])

    assert "StatusCode.UNAUTHENTICATED" == caught.value.status()
    assert client.is_server_live()
    assert 401 == httpx.get(f"{server.url}/v2", verify=authority).status_code
    assert 200 == httpx.get(f"{server.url}/v2/health/live", verify=authority).status_code


def test_client_without_tls(guarded):
    """A client without TLS is not answered."""
    server, _ = guarded
    with pytest.raises(InferenceServerException):
        triton.InferenceServerClient(server.grpc).is_server_live()
