"""TLS: a real handshake, and unusable certificates and keys."""

from __future__ import annotations

import socket
import ssl

import httpx
import pytest
import trustme
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption

from demi.errors import InputError
from demi.server.tls import open_tls
from tests.server.bundles import SCALE, write_bundle
from tests.server.processes import run_serve, serving


@pytest.fixture(scope="module")
def authority():
    """Return a certificate authority for this test."""
    return trustme.CA()


@pytest.fixture(scope="module")
def files(authority, tmp_path_factory):
    """Write certificate and key of a server on this machine to files."""
    folder = tmp_path_factory.mktemp("tls")
    issued = authority.issue_cert("127.0.0.1", "localhost")
    issued.private_key_pem.write_to_path(folder / "key.pem")
    for pem in issued.cert_chain_pems:
        pem.write_to_path(folder / "cert.pem", append=True)
    return folder / "cert.pem", folder / "key.pem"


def test_https(authority, files, tmp_path):
    """The log shows an https address; clients that trust the authority are answered, others refuse the certificate."""
    trust = ssl.create_default_context()
    authority.configure_trust(trust)
    with serving(write_bundle(tmp_path / "b", SCALE), "--tls-cert", files[0], "--tls-key", files[1]) as server:
        answer = httpx.get(server.url + "/v2/models/scale", verify=trust)
        with pytest.raises(httpx.ConnectError):
            httpx.get(server.url + "/v2")
        plain_url = server.url.replace("https", "http") + "/v2"
        plain_http = [httpx.get(plain_url), httpx.post(plain_url, content=b"x" * 100_000), httpx.get(plain_url)]
        port = int(server.url.rsplit(":", 1)[1])
        old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        authority.configure_trust(old)
        old.set_ciphers("DEFAULT:@SECLEVEL=0")
        old.minimum_version, old.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
        with socket.create_connection(("127.0.0.1", port)) as plain, pytest.raises((ssl.SSLError, OSError)):
            old.wrap_socket(plain, server_hostname="localhost")

    assert server.url.startswith("https://127.0.0.1:")
    assert 200 == answer.status_code
    assert [400, 400, 400] == [each.status_code for each in plain_http]
    assert "this port speaks HTTPS: use https://" in plain_http[0].json()["error"]


def test_no_files_means_plain_http():
    """Without files there is no TLS context."""
    assert open_tls(None, None) is None


def test_certificate_without_key_and_key_without_certificate(files):
    """The error names the missing flag."""
    with pytest.raises(InputError, match="needs --tls-key"):
        open_tls(files[0], None)
    with pytest.raises(InputError, match="needs --tls-cert"):
        open_tls(None, files[1])


def test_unusable_keys(authority, files, tmp_path):
    """A key of another certificate, a file that is not PEM, a missing file and an encrypted key each have their error."""
    other, text, locked = tmp_path / "other.pem", tmp_path / "text.pem", tmp_path / "locked.pem"
    authority.issue_cert("localhost").private_key_pem.write_to_path(other)
    text.write_text("no key")
    key = serialization.load_pem_private_key(files[1].read_bytes(), None)
    form = serialization.PrivateFormat.TraditionalOpenSSL
    locked.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, BestAvailableEncryption(b"x")))

    for key, words in (
        (other, "does not match the certificate"),
        (text, "cannot load the TLS certificate or key"),
        (tmp_path / "none.pem", "cannot read the file of --tls-key: No such file"),
        (locked, "is encrypted"),
    ):
        with pytest.raises(InputError, match=words):
            open_tls(files[0], key)


def test_unusable_key_stops_the_server(files, tmp_path):
    """TLS errors come before models are loaded: the empty folder is not mentioned."""
    ended = run_serve(str(tmp_path), "--tls-cert", str(files[0]), "--tls-key", str(files[0]))

    assert 2 == ended.returncode
    assert "cannot load the TLS certificate or key" in ended.stderr
