"""API keys: which requests pass, and how key files are read."""

from __future__ import annotations

import logging

import httpx
import pytest

from demi.errors import InputError
from demi.server.errors import UnauthorizedError
from demi.server.keys import Keys, read_keys, warn_without_key
from demi.server.settings import ServeSettings
from tests.server.bundles import SCALE, write_bundle
from tests.server.fakes import message
from tests.server.processes import run_serve, serving

KEY = "0123456789abcdef-first"
OTHER = "0123456789abcdef-other"
INFER = "/v2/models/scale/infer"
ROW = message([1, 2, 3], shape=[1, 3])


def write_keys(path, text: str, mode: int = 0o600):
    path.write_text(text)
    path.chmod(mode)
    return path


@pytest.mark.parametrize(
    "headers",
    [
        [(b"authorization", f"Bearer {KEY}".encode())],
        [(b"authorization", f"bearer  {OTHER} ".encode())],
        [(b"host", b"x"), (b"x-api-key", KEY.encode())],
        [("authorization", f"Bearer {KEY}")],
        [("x-api-key", OTHER.encode())],
    ],
)
def test_any_key_passes_over_http_and_in_grpc_metadata(headers):
    """Any key passes, as a bearer token or as X-API-Key, in bytes or in text."""
    Keys([KEY, OTHER]).authorize(headers)


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [(b"authorization", KEY.encode())],
        [(b"authorization", f"Basic {KEY}".encode())],
        [(b"authorization", b"Bearer ")],
        [(b"authorization", f"Bearer {KEY}x".encode())],
        [(b"x-api-key", KEY[:-1].encode())],
        [(b"x-api-key", b"\xff\xfe")],
        [(b"x-api-key", f"{KEY}\n{OTHER}".encode())],
        [("x-api-key", "\udc80")],
    ],
)
def test_requests_without_a_valid_key_are_refused(headers):
    """Requests without a valid key are refused: none, another scheme, longer or shorter, not text."""
    with pytest.raises(UnauthorizedError):
        Keys([KEY, OTHER]).authorize(headers)


def test_keys_are_not_kept_in_memory():
    """The object contains digests only."""
    assert KEY.encode() not in repr(vars(Keys([KEY]))).encode()


def test_read_keys(tmp_path):
    """A file has one key per line; blank lines and comments are skipped."""
    keys = read_keys(write_keys(tmp_path / "keys", f"# team a\n{KEY}\n\n  {OTHER}  \r\n#{KEY}x\n"))

    keys.authorize([(b"x-api-key", OTHER.encode())])
    for wrong in (b"# team a", b"", f"#{KEY}x".encode()):
        with pytest.raises(UnauthorizedError):
            keys.authorize([(b"x-api-key", wrong)])


@pytest.mark.parametrize("text", ["", "# none\n\n", "two words-and-more-of-it\n", "schlüssel-schlüssel\n"])
def test_files_without_a_usable_key(tmp_path, text):
    """A file without keys, or with a key that a header cannot carry, is refused."""
    with pytest.raises(InputError) as error:
        read_keys(write_keys(tmp_path / "keys", text))

    assert str(tmp_path / "keys") == error.value.where


def test_world_readable_file_and_short_key_cause_warnings(tmp_path, caplog):
    """Both are accepted with a warning; a private file with a long key causes none."""
    with caplog.at_level(logging.WARNING, "demi.server"):
        read_keys(write_keys(tmp_path / "private", KEY))
        assert "" == caplog.text
        read_keys(write_keys(tmp_path / "open", "short", 0o644))

    assert "chmod o-r" in caplog.text
    assert "can be guessed" in caplog.text


def test_a_server_with_keys(tmp_path):
    """All paths except health require a key, also unknown paths and wrong methods; 401 says what to send."""
    keys = write_keys(tmp_path / "keys", KEY)
    with serving(write_bundle(tmp_path / "b", SCALE), "--api-key-file", str(keys)) as server:
        with httpx.Client(base_url=server.url) as stranger:
            open_to_all = [stranger.get(path).status_code for path in ("/v2/health/live", "/health/ready")]
            closed = [stranger.get(path) for path in ("/v2", "/metrics", "/docs", "/", "/nope", INFER)]
            closed += [stranger.post(INFER, content=ROW), stranger.post(INFER, headers={"x-api-key": OTHER})]
        with httpx.Client(base_url=server.url, headers={"authorization": f"Bearer {KEY}"}) as friend:
            welcome = [friend.get("/v2").status_code, friend.post(INFER, content=ROW).status_code]

    assert [200, 200] == open_to_all
    assert {401} == {answer.status_code for answer in closed}
    assert {"Bearer"} == {answer.headers["www-authenticate"] for answer in closed}
    assert {("error",)} == {tuple(answer.json()) for answer in closed}
    assert [200, 200] == welcome
    assert KEY not in server.log


def test_missing_key_file(tmp_path):
    """A server whose key file is missing does not start."""
    ended = run_serve(str(write_bundle(tmp_path / "b", SCALE)), "--api-key-file", str(tmp_path / "none"))

    assert 2 == ended.returncode
    assert "the API keys cannot be read: No such file" in ended.stderr


@pytest.mark.parametrize(("keys", "is_local", "warnings"), [(None, False, 1), (None, True, 0), (Keys([KEY]), False, 0)])
def test_warning_for_an_open_server(keys, is_local, warnings, caplog):
    """A server that others can reach without a key says so in its log."""
    warn_without_key(ServeSettings(host="0.0.0.0"), keys, is_local=is_local)

    assert warnings == sum("everyone who can reach 0.0.0.0" in message for message in caplog.messages)
