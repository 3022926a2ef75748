"""Files are written atomically."""

import errno
import os

import pytest

from demi.errors import InputError
from demi.files import OWNER_ALONE, check_writable, write_bytes_whole, write_whole


def test_written(tmp_path):
    """The file has the text and ordinary permissions, and nothing else is left in the folder."""
    write_whole(tmp_path / "a.txt", "text \u00e9")

    assert "text \u00e9" == (tmp_path / "a.txt").read_text(encoding="utf-8")
    assert ["a.txt"] == os.listdir(tmp_path)
    assert 0o644 == (tmp_path / "a.txt").stat().st_mode & 0o777


def test_replaced(tmp_path):
    """An old file is replaced."""
    write_whole(tmp_path / "a.txt", "old")
    write_whole(tmp_path / "a.txt", "new")

    assert "new" == (tmp_path / "a.txt").read_text()


def test_a_pipe_stays_a_pipe(tmp_path):
    """A pipe or device is written to and never replaced: `/dev/stdout` would be lost for all programs."""
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    try:
        check_writable(tmp_path / "pipe")
        write_whole(tmp_path / "pipe", "text")

        assert b"text" == os.read(reader, 100)
    finally:
        os.close(reader)
    assert (tmp_path / "pipe").is_fifo()


def test_a_link_is_followed(tmp_path):
    """The target of a link is written, and the link is kept."""
    (tmp_path / "there").mkdir()
    (tmp_path / "a.txt").symlink_to(tmp_path / "there" / "b.txt")
    check_writable(tmp_path / "a.txt")
    write_whole(tmp_path / "a.txt", "text")

    assert (True, "text") == ((tmp_path / "a.txt").is_symlink(), (tmp_path / "there" / "b.txt").read_text())


def test_text_that_cannot_be_encoded(tmp_path):
    """If the text cannot be encoded, the old file is kept, and no draft is left."""
    write_whole(tmp_path / "a.txt", "old")
    with pytest.raises(UnicodeEncodeError):
        write_whole(tmp_path / "a.txt", "\ud800")

    assert "old" == (tmp_path / "a.txt").read_text()
    assert ["a.txt"] == os.listdir(tmp_path)


@pytest.mark.parametrize("path", ["none/a.txt", "."])
@pytest.mark.parametrize("write", [lambda path: write_whole(path, "x"), check_writable])
def test_unwritable_place(tmp_path, path, write):
    """An unwritable place raises an error, and nothing is left."""
    with pytest.raises(InputError, match="the file cannot be written"):
        write(tmp_path / path)

    assert [] == os.listdir(tmp_path)


def test_private_files(tmp_path):
    """A private file is readable only by its owner from the first moment."""
    write_bytes_whole(tmp_path / "a.bin", b"secret", mode=OWNER_ALONE)

    assert b"secret" == (tmp_path / "a.bin").read_bytes()
    assert 0o600 == (tmp_path / "a.bin").stat().st_mode & 0o777


def test_full_disk(tmp_path, monkeypatch):
    """If writing to disk fails, the old file is kept, and no draft is left."""
    write_whole(tmp_path / "a.txt", "old")
    monkeypatch.setattr(os, "fsync", full)

    with pytest.raises(InputError, match="No space left on device"):
        write_whole(tmp_path / "a.txt", "new")
    assert "old" == (tmp_path / "a.txt").read_text()
    assert ["a.txt"] == os.listdir(tmp_path)


def full(_: int) -> None:
    """Raise the error of a full disk."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_check_writes_nothing(tmp_path):
    """The check for a writable path writes no file."""
    check_writable(tmp_path / "a.txt")

    assert [] == os.listdir(tmp_path)
