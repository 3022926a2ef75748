"""OpenAI's transcriptions: sounds in a form, their text in several forms, languages, and errors."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import numpy as np
import openai
import pytest

from demi.server.errors import RequestError
from demi.server.http.forms import MOST_PARTS, read_form
from tests.generating_bundles import write_generating_repository
from tests.raw_inputs import wav
from tests.server.processes import ServerProcess, serving

NOISE, SILENCE = (wav(np.full(8000, level, np.float32), 16_000) for level in (0.5, 0.0))
BOUNDARY = 'multipart/form-data; boundary="b"'


@pytest.fixture(scope="module")
def speech_server(tmp_path_factory) -> Iterator[ServerProcess]:
    """Start a server with models that write what they hear: `hear` in one language, `write` in two."""
    root = tmp_path_factory.mktemp("speech")
    flags = ("--max-body", "1M", "--no-grpc", "--no-trial")
    with serving(write_generating_repository(root), *flags) as process:
        yield process


@pytest.fixture
def transcriptions(speech_server):
    """Return OpenAI's transcriptions."""
    return openai.OpenAI(base_url=f"{speech_server.url}/v1", api_key="none", max_retries=0).audio.transcriptions


def test_the_text_of_a_sound(transcriptions):
    """As JSON with the seconds that were heard, or as plain text."""
    found = transcriptions.create(file=("a.wav", NOISE), model="hear")
    plain = transcriptions.create(file=("a.wav", SILENCE), model="hear", response_format="text")

    assert ("three", "duration", 0.5) == (found.text, found.usage.type, found.usage.seconds)
    assert "five" == plain


@pytest.mark.parametrize(
    ("sound", "options", "language", "text"),
    [
        (NOISE, {}, "en", "three"),
        (SILENCE, {}, "de", "six"),
        (NOISE, {"language": "de"}, "de", "six"),
        (SILENCE, {"language": "EN"}, "en", "three"),
    ],
    ids=["detected", "another-detected", "named", "named-in-capitals"],
)
def test_languages(transcriptions, sound, options, language, text):
    """The one that is named, else the most probable one."""
    found = transcriptions.create(file=("a.wav", sound), model="write", response_format="verbose_json", **options)

    assert (language, text, 0.5) == (found.language, found.text, found.duration)


def test_a_model_without_codes(transcriptions):
    """Its language is not known."""
    found = transcriptions.create(file=("a.wav", NOISE), model="hear", response_format="verbose_json")

    assert "und" == found.language


def test_a_stream(transcriptions):
    """Pieces, and the whole at the end."""
    events = list(transcriptions.create(file=("a.wav", NOISE), model="write", stream=True))

    assert "three" == "".join(each.delta for each in events if each.type == "transcript.text.delta")
    assert ("transcript.text.done", "three") == (events[-1].type, events[-1].text)


@pytest.mark.parametrize(
    ("sound", "options", "kind", "message"),
    [
        (NOISE, {"model": "nothing"}, openai.NotFoundError, "unknown model"),
        (NOISE, {"model": "count"}, openai.BadRequestError, "generates from text"),
        (NOISE, {"language": "fr"}, openai.BadRequestError, "does not write `fr`.*de, en"),
        (NOISE, {"model": "hear", "language": "en"}, openai.BadRequestError, "no choice of languages"),
        (NOISE, {"response_format": "srt"}, openai.BadRequestError, "no times are written"),
        (NOISE, {"temperature": 0.5}, openai.BadRequestError, "`temperature` is not supported"),
        (NOISE, {"prompt": "names"}, openai.BadRequestError, "`prompt` is not supported"),
        (NOISE, {"timestamp_granularities": ["word"]}, openai.BadRequestError, "timestamp_granularities"),
        (NOISE[:30], {}, openai.BadRequestError, "sound 0 is not a sound"),
        (b"ID3 no sound", {"stream": True}, openai.BadRequestError, "send WAV or FLAC"),
        (b"", {}, openai.BadRequestError, "sound 0 is not a sound"),
        (wav(np.zeros(32_000, np.float32), 16_000), {}, openai.BadRequestError, "the model takes 1 s"),
        (bytes(2 << 20), {}, openai.APIStatusError, "--max-body"),
    ],
    ids=["model", "kind", "language", "one-language", "format", "temperature", "prompt", "times", "cut", "other-file",
         "empty", "long", "large"],
)  # fmt: skip
def test_errors(transcriptions, sound, options, kind, message):
    """In OpenAI's form."""
    with pytest.raises(kind, match=message) as caught:
        transcriptions.create(**{"file": ("a.wav", sound), "model": "write", **options})

    assert "invalid_request_error" == caught.value.type


def test_a_long_sound_is_cut_when_asked(transcriptions):
    """By an extension."""
    sound = wav(np.zeros(32_000, np.float32), 16_000)
    found = transcriptions.create(file=("a.wav", sound), model="write", extra_body={"truncate": "true"})

    assert ("six", 2.0) == (found.text, found.usage.seconds)


@pytest.mark.parametrize(
    ("content", "kind", "message"),
    [
        (b"{}", "application/json", "not a form"),
        (b"x", "multipart/form-data", "not a form"),
        (b"x", BOUNDARY, "cannot be read"),
        (b"", BOUNDARY, "before its last boundary"),
        (b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\nRI', BOUNDARY, "before its last boundary"),
        (b"--b\r\nContent-Disposition: form-data\r\n\r\nx\r\n--b--", BOUNDARY, "has no name"),
        (b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nhear\r\n--b--', BOUNDARY, "`file` is missing"),
    ],
    ids=["json", "no-boundary", "garbage", "empty", "cut", "no-name", "no-file"],
)
def test_broken_forms(speech_server, content, kind, message):
    """400 with the reason, in OpenAI's form."""
    headers = {"content-type": kind}
    answer = httpx.post(f"{speech_server.url}/v1/audio/transcriptions", content=content, headers=headers)

    assert (400, True) == (answer.status_code, message in answer.json()["error"]["message"]), answer.text


def test_a_form_of_many_parts():
    """Each costs more than its bytes."""
    part = b'--b\r\nContent-Disposition: form-data; name="x"\r\n\r\n\r\n'
    with pytest.raises(RequestError, match=f"more than {MOST_PARTS} fields"):
        read_form(part * 100_000 + b"--b--", BOUNDARY)


def test_files_are_read_byte_for_byte():
    """Also where they hold what looks like a boundary."""
    sound = bytes(range(256)) + b"\r\n--\r\n--bb\r\n-" + b"\r\n" * 9
    head = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a;b.wav"\r\nContent-Type: audio/wav\r\n\r\n'

    assert sound == read_form(head + sound.replace(b"--bb", b"--cc") + b"\r\n--b--\r\n", BOUNDARY).file("file").replace(
        b"--cc", b"--bb"
    )
