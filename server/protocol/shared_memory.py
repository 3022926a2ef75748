"""Tensors in POSIX shared memory: clients on this machine name a region once, and then send places instead of bytes.

A region is read and written through its file, never mapped: an object that its owner cuts short then is an error of one
request, where a mapping would end the process. What was read is a copy, so that it cannot change after it was checked.
"""

from __future__ import annotations

import os
import re
import stat
import threading
from dataclasses import dataclass

from demi.server.errors import (
    BodyTooLargeError,
    ForbiddenError,
    NotFoundError,
    RequestError,
    UnsupportedError,
)
from demi.server.protocol.parameters import whole_number
from demi.server.protocol.schemas import Parameter, RegionStatus

_DIRECTORY = "/dev/shm"
_KEY = re.compile(r"/?(?!\.{1,2}$)[^/\0]{1,254}", re.DOTALL)
"""What `shm_open` takes for a name: one component, so that it never becomes a path."""
_MOST_REGIONS = 256
"""Each keeps a file open, and a server needs those for its connections."""
_PREFIX = "shared_memory_"


class Region:
    """A part of one shared memory object, under a client's name. Owns the open file; any thread may use it."""

    def __init__(self, status: RegionStatus, file: int) -> None:
        self.status = status
        self._file = file
        self._lock = threading.Lock()

    def read(self, offset: int, size: int) -> memoryview:
        """A copy of `size` bytes; RequestError where they are no longer there."""
        with self._lock:
            self._check(offset, size)
            data = bytearray(size)
            view, at = memoryview(data), 0
            while at < size and (count := os.preadv(self._file, [view[at:]], self.status.offset + offset + at)):
                at += count
            if at < size:
                raise self._shrunk()
            return view.toreadonly()

    def write(self, offset: int, data: bytes) -> None:
        """Put bytes there; RequestError where the place is no longer there."""
        with self._lock:
            self._check(offset, len(data))
            view, at = memoryview(data), 0
            while at < len(data):
                at += os.pwrite(self._file, view[at:], self.status.offset + offset + at)

    def close(self) -> None:
        """Let go of the object."""
        with self._lock:
            os.close(self._file)
            self._file = -1

    def _check(self, offset: int, size: int) -> None:
        if self._file < 0:
            raise RequestError(f"shared memory region `{self.status.name}` was unregistered")
        if self.status.offset + offset + size > os.fstat(self._file).st_size:
            raise self._shrunk()

    def _shrunk(self) -> RequestError:
        return RequestError(f"the object behind shared memory region `{self.status.name}` has become smaller")


@dataclass(frozen=True, slots=True)
class Place:
    """Where in a region one tensor lies: `byte_size` bytes from `offset`."""

    region: Region
    offset: int
    byte_size: int

    def read(self) -> memoryview:
        """A copy of all its bytes."""
        return self.region.read(self.offset, self.byte_size)

    def write(self, data: bytes, name: str) -> None:
        """Put an output there; RequestError, which names it, where it takes more bytes than the place has."""
        if len(data) > self.byte_size:
            raise RequestError(
                f"output `{name}` takes {len(data)} bytes, but its place in shared memory has {self.byte_size}"
            )
        self.region.write(self.offset, data)


class SharedMemory:
    """The regions that clients have registered, by name. Regions come and go on the event loop's thread.

    Unless `allowed` there are none and can be none. `max_bytes` bounds what one input may bring in.
    """

    def __init__(self, *, allowed: bool, max_bytes: int) -> None:
        self._allowed = allowed
        self._max_bytes = max_bytes
        self._regions: dict[str, Region] = {}

    @property
    def in_use(self) -> bool:
        """Whether there is any region: then even a small message may mean much to copy."""
        return bool(self._regions)

    def register(self, name: str, key: str, offset: int, byte_size: int) -> None:
        """Open the object `key` and call `byte_size` bytes of it, from `offset`, by a name.

        Raises ForbiddenError where the settings do not allow it, and RequestError where name, key or size do not fit.
        """
        if not self._allowed:
            raise ForbiddenError(
                "this server does not open shared memory for clients", hint="start it with --allow-shared-memory"
            )
        if not name or name in self._regions:
            raise RequestError(
                f"shared memory region `{name}` is registered already" if name else "a region needs a name"
            )
        if len(self._regions) >= _MOST_REGIONS:
            raise RequestError(f"{_MOST_REGIONS} regions are registered already", hint="unregister some")
        self._regions[name] = Region(RegionStatus(name, key, offset, byte_size), _open(key, offset, byte_size))

    def unregister(self, name: str = "") -> None:
        """Let go of a region, or of all; nothing happens where there is none. Whoever uses it is told."""
        for known in [name] if name else list(self._regions):
            if region := self._regions.pop(known, None):
                region.close()

    def status(self, name: str = "") -> list[RegionStatus]:
        """The region of that name, or all; NotFoundError where it is not there."""
        if name and name not in self._regions:
            raise NotFoundError(f"unknown shared memory region `{name}`")
        return [region.status for known, region in self._regions.items() if name in ("", known)]

    def place(self, parameters: dict[str, Parameter], owner: str) -> Place | None:
        """The place that the parameters of an input or output name, which `owner` is; None where they name none.

        Raises RequestError where it is not inside a region, and BodyTooLargeError beyond `max_bytes`.
        """
        if not any(name.startswith(_PREFIX) for name in parameters):
            return None
        if not self._allowed:
            raise RequestError(
                f"{owner} asks for shared memory, which this server does not offer",
                hint="send and ask for binary data, or start the server with --allow-shared-memory",
            )
        region = self._regions.get(str(parameters.get(f"{_PREFIX}region", "")))
        size = whole_number(parameters, f"{_PREFIX}byte_size", owner)
        offset = whole_number(parameters, f"{_PREFIX}offset", owner) or 0
        if region is None or size is None:
            raise RequestError(
                f"{owner} needs the name of a registered region and a byte size",
                hint="give the parameters shared_memory_region and shared_memory_byte_size",
            )
        if offset + size > region.status.byte_size:
            raise RequestError(
                f"{owner} wants bytes {offset} to {offset + size} of shared memory region `{region.status.name}`, "
                f"which has {region.status.byte_size}"
            )
        if size > self._max_bytes:
            raise BodyTooLargeError(
                f"{owner} is larger than {self._max_bytes} bytes", hint="the server's limit is --max-body"
            )
        return Place(region, offset, size)


NO_SHARED_MEMORY = SharedMemory(allowed=False, max_bytes=0)
"""What a server without shared memory has."""


def _open(key: str, offset: int, byte_size: int) -> int:
    """The open file of a POSIX shared memory object that holds these bytes."""
    if not _KEY.fullmatch(key):
        raise RequestError(f"`{key[:40]}` is no name of a shared memory object", hint="use one like /my_region")
    if byte_size < 1 or offset < 0:
        raise RequestError("a region has at least one byte, from an offset of zero or more")
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        file = os.open(f"{_DIRECTORY}/{key.removeprefix('/')}", flags)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no such name"
        raise RequestError(f"shared memory object `{key}` cannot be opened: {reason}") from error
    found = os.fstat(file)
    if stat.S_ISREG(found.st_mode) and offset + byte_size <= found.st_size:
        return file
    os.close(file)
    if not stat.S_ISREG(found.st_mode):
        raise RequestError(f"`{key}` is no shared memory object")
    raise RequestError(
        f"shared memory object `{key}` has {found.st_size} bytes, but the region ends at {offset + byte_size}"
    )


def no_cuda() -> UnsupportedError:
    """Why CUDA shared memory cannot be registered."""
    return UnsupportedError(
        "this server does not open CUDA shared memory", hint="use system shared memory, or send the bytes"
    )
