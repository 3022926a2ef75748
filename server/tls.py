"""Load the TLS certificate and key, before any model is loaded."""

from __future__ import annotations

import ssl
from pathlib import Path

from demi.errors import InputError


def open_tls(certificate: Path | None, key: Path | None) -> ssl.SSLContext | None:
    """Return the SSL context for `--tls-cert` and `--tls-key` (TLS 1.2 or newer); None if neither is given.

    The certificate file contains the whole chain in PEM, the server's certificate first. Raises InputError if one of the
    two is missing, unreadable, not PEM or encrypted, or if the key does not match the certificate.
    """
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        given, missing = ("--tls-key", "--tls-cert") if certificate is None else ("--tls-cert", "--tls-key")
        raise InputError(f"{given} needs {missing} as well", hint="give both, or neither for plain HTTP")
    for flag, path in (("--tls-cert", certificate), ("--tls-key", key)):
        _check_readable(flag, path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(certificate, key, password=_no_password)
    except ssl.SSLError as error:
        raise _load_error(certificate, key, error) from error
    return context


def _check_readable(flag: str, path: Path) -> None:
    try:
        with path.open("rb"):
            pass
    except OSError as error:
        raise InputError(f"cannot read the file of {flag}: {error.strerror}", where=str(path)) from error


def _no_password() -> str:
    """Raise InputError. Without this callback, OpenSSL would prompt on the terminal."""
    raise InputError("the key of --tls-key is encrypted", hint="decrypt it: openssl pkey -in key.pem -out plain.pem")


def _load_error(certificate: Path, key: Path, error: ssl.SSLError) -> InputError:
    where = f"{certificate} and {key}"
    if error.reason == "KEY_VALUES_MISMATCH":
        return InputError("the TLS key does not match the certificate", where=where)
    return InputError(
        f"cannot load the TLS certificate or key: {error.reason or error}",
        where=where,
        hint="both must be PEM files",
    )
