"""Forms with files, `multipart/form-data`, read from a body whose size is bounded already."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from demi.errors import missing_package
from demi.server.errors import RequestError

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

MOST_PARTS = 64
"""Most fields of a form: each costs more than its bytes."""

LONGEST_FIELD = 1 << 16
"""Most bytes of a field that is text."""


@dataclass(frozen=True, slots=True)
class Form:
    """The parts of a form by name, in order: each is the content of a field or of a file."""

    parts: dict[str, list[bytes]]

    def file(self, name: str) -> bytes:
        """Return the only file, or field, of this name. Raises RequestError if there is none, or more than one."""
        found = self.parts.get(name, [])
        if len(found) != 1:
            why = "is missing" if not found else f"is sent {len(found)} times"
            raise RequestError(f"`{name}` {why}", hint=f"send one file: curl -F {name}=@FILE")
        return found[0]

    def text(self, name: str) -> str | None:
        """Return the text of a field, None if it is absent. Raises RequestError if it is not one short UTF-8 text."""
        found = self.parts.get(name, [])
        if not found:
            return None
        if len(found) > 1 or len(found[0]) > LONGEST_FIELD:
            raise RequestError(f"`{name}` must be one text of at most {LONGEST_FIELD:,} bytes")
        try:
            return found[0].decode()
        except UnicodeDecodeError as error:
            raise RequestError(f"`{name}` is not UTF-8 text") from error

    def flag(self, name: str) -> bool:
        """Return a field that is `true` or `false`, false if it is absent. Raises RequestError for anything else."""
        match (self.text(name) or "false").lower():
            case "true" | "1":
                return True
            case "false" | "0":
                return False
            case other:
                raise RequestError(f"`{name}` is `{other[:40]}`", hint="send true or false")


def read_form(body: bytes, content_type: str) -> Form:
    """Return the parts of a form. Raises RequestError for a body that is not one, that is cut off, or has too many parts."""
    try:
        from python_multipart.exceptions import FormParserError
        from python_multipart.multipart import MultipartParser, parse_options_header
    except ImportError as error:
        raise missing_package("python-multipart", "server") from error
    kind, options = parse_options_header(content_type)
    if kind != b"multipart/form-data" or not options.get(b"boundary"):
        raise RequestError(
            f"the body is `{content_type[:60] or 'of no type'}`, not a form", hint="send multipart/form-data: curl -F"
        )
    reader = _Reader()
    try:
        parser = MultipartParser(options[b"boundary"], reader.callbacks())
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise RequestError(f"the form cannot be read: {error}") from error
    if not reader.has_ended:
        raise RequestError("the form ends before its last boundary")
    return Form(reader.parts)


class _Reader:
    """Collects the parts of one form while it is parsed."""

    def __init__(self) -> None:
        self.parts: dict[str, list[bytes]] = {}
        self.has_ended = False
        self._count = 0
        self._header = self._value = b""
        self._disposition = b""
        self._content: list[bytes] = []

    def callbacks(self) -> MultipartCallbacks:
        """Return the functions that the parser calls."""
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._add_header,
            "on_header_value": self._add_value,
            "on_header_end": self._end_header,
            "on_part_data": self._add_content,
            "on_part_end": self._end,
            "on_end": self._finish,
        }

    def _begin(self) -> None:
        self._count += 1
        if self._count > MOST_PARTS:
            raise RequestError(f"the form has more than {MOST_PARTS} fields")
        self._header = self._value = self._disposition = b""
        self._content = []

    def _add_header(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _add_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = self._value
        self._header = self._value = b""

    def _add_content(self, data: bytes, start: int, end: int) -> None:
        self._content.append(data[start:end])

    def _end(self) -> None:
        from python_multipart.multipart import parse_options_header

        _, options = parse_options_header(self._disposition)
        name = options.get(b"name", b"").decode(errors="replace")
        if not name:
            raise RequestError(
                "a part of the form has no name", hint='each needs `Content-Disposition: form-data; name="..."`'
            )
        self.parts.setdefault(name, []).append(b"".join(self._content))
        self._content = []

    def _finish(self) -> None:
        self.has_ended = True
