"""What protects HTTP protects gRPC as well: one server with a certificate and a key, asked on both ports."""

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
    """A server with TLS and an API key, and the file of the authority that it is known by."""
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


def test_who_has_the_key_is_answered(guarded):
    """Over TLS and with the key, gRPC answers."""
    server, authority = guarded
    client = triton.InferenceServerClient(server.grpc, ssl=True, root_certificates=authority)
    result = client.infer("scale", [given("x", X, "FP32")], headers={"authorization": f"Bearer {KEY}"})

    assert [[2, 6, 12]] == result.as_numpy("y").tolist()


def test_who_has_not_is_refused(guarded):
    """Without the key gRPC answers UNAUTHENTICATED, and HTTP 401; both still say that they live."""
    server, authority = guarded
    client = triton.InferenceServerClient(server.grpc, ssl=True, root_certificates=authority)
    with pytest.raises(InferenceServerException) as caught:
        client.infer("scale", [given("x", X, "FP32")])

    assert "StatusCode.UNAUTHENTICATED" == caught.value.status()
    assert client.is_server_live()
    assert 401 == httpx.get(f"{server.url}/v2", verify=authority).status_code
    assert 200 == httpx.get(f"{server.url}/v2/health/live", verify=authority).status_code


def test_plain_text_is_not_spoken(guarded):
    """A client without TLS gets nothing."""
    server, _ = guarded
    with pytest.raises(InferenceServerException):
        triton.InferenceServerClient(server.grpc).is_server_live()
