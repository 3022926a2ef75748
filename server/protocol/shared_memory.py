"""Tensors in POSIX shared memory: local clients register a region once and then send offsets instead of bytes.

Regions are read and written as files, never mapped: if the owner truncates the object, one request fails, while access to a
mapping would crash the process. Reads are copies, so that data cannot change after it was checked.
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
from demi.server.protocol.parameters import read_count
from demi.server.protocol.schemas import Parameter, RegionStatus

_DIRECTORY = "/dev/shm"
_KEY = re.compile(r"/?(?!\.{1,2}$)[^/\0]{1,254}", re.DOTALL)
"""A valid name for `shm_open`: a single path component."""
_MAX_REGIONS = 256
"""Each region keeps a file open, and connections need file descriptors too."""
_PREFIX = "shared_memory_"


class Region:
    """A registered part of a shared memory object. Owns the open file; thread-safe."""

    def __init__(self, status: RegionStatus, file: int) -> None:
        self.status = status
        self._file = file
        self._lock = threading.Lock()

    def read(self, offset: int, size: int) -> memoryview:
        """Return a copy of `size` bytes; RequestError if the object has shrunk or the region was unregistered."""
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
        """Write bytes at an offset; RequestError if the object has shrunk or the region was unregistered."""
        with self._lock:
            self._check(offset, len(data))
            view, at = memoryview(data), 0
            while at < len(data):
                at += os.pwrite(self._file, view[at:], self.status.offset + offset + at)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            os.close(self._file)
            self._file = -1

    def _check(self, offset: int, size: int) -> None:
        if self._file < 0:
            raise RequestError(f"shared memory region `{self.status.name}` was unregistered")
        if self.status.offset + offset + size > os.fstat(self._file).st_size:
            raise self._shrunk()

    def _shrunk(self) -> RequestError:
        return RequestError(
            f"the object of shared memory region `{self.status.name}` has shrunk since it was registered"
        )


@dataclass(frozen=True, slots=True)
class RegionSlice:
    """The part of a region that holds one tensor: `byte_size` bytes from `offset`."""

    region: Region
    offset: int
    byte_size: int

    def read(self) -> memoryview:
        """Return a copy of its bytes."""
        return self.region.read(self.offset, self.byte_size)

    def write(self, data: bytes, name: str) -> None:
        """Write output `name`; RequestError, naming it, if the slice is too small."""
        if len(data) > self.byte_size:
            raise RequestError(
                f"output `{name}` needs {len(data)} bytes, but its shared memory slice has {self.byte_size}"
            )
        self.region.write(self.offset, data)


class SharedMemory:
    """The regions that clients have registered. Registered and unregistered on the event loop's thread only.

    Unless `allowed`, registration is refused. `max_bytes` limits the size of one tensor.
    """

    def __init__(self, *, allowed: bool, max_bytes: int) -> None:
        self._allowed = allowed
        self._max_bytes = max_bytes
        self._regions: dict[str, Region] = {}

    @property
    def in_use(self) -> bool:
        """Return whether any region is registered: then even a small message may require copying many bytes."""
        return bool(self._regions)

    def register(self, name: str, key: str, offset: int, byte_size: int) -> None:
        """Register `byte_size` bytes from `offset` of the object `key` as region `name`.

        Raises ForbiddenError if the settings do not allow it, and RequestError if name, key or size are invalid.
        """
        if not self._allowed:
            raise ForbiddenError(
                "this server does not let clients use shared memory", hint="start it with --allow-shared-memory"
            )
        if not name or name in self._regions:
            raise RequestError(
                f"shared memory region `{name}` is registered already" if name else "a region needs a name"
            )
        if len(self._regions) >= _MAX_REGIONS:
            raise RequestError(f"{_MAX_REGIONS} regions are registered already", hint="unregister some")
        self._regions[name] = Region(RegionStatus(name, key, offset, byte_size), _open(key, offset, byte_size))

    def unregister(self, name: str = "") -> None:
        """Unregister one region, or all. Unknown names are ignored. Requests still using a region fail with RequestError."""
        for known in [name] if name else list(self._regions):
            if region := self._regions.pop(known, None):
                region.close()

    def status(self, name: str = "") -> list[RegionStatus]:
        """Return the region of that name, or all; NotFoundError if it does not exist."""
        if name and name not in self._regions:
            raise NotFoundError(f"unknown shared memory region `{name}`")
        return [region.status for known, region in self._regions.items() if name in ("", known)]

    def slice(self, parameters: dict[str, Parameter], owner: str) -> RegionSlice | None:
        """Return the slice of a region that the parameters of `owner`, an input or output, refer to; None if they do not.

        Raises RequestError if the slice is not inside a region, and BodyTooLargeError if it exceeds `max_bytes`.
        """
        if not any(name.startswith(_PREFIX) for name in parameters):
            return None
        if not self._allowed:
            raise RequestError(
                f"{owner} uses shared memory, which this server does not offer",
                hint="use binary data, or start the server with --allow-shared-memory",
            )
        region = self._regions.get(str(parameters.get(f"{_PREFIX}region", "")))
        size = read_count(parameters, f"{_PREFIX}byte_size", owner)
        offset = read_count(parameters, f"{_PREFIX}offset", owner) or 0
        if region is None or size is None:
            raise RequestError(
                f"{owner} uses shared memory, but does not give a registered region and a byte size",
                hint="set the parameters shared_memory_region and shared_memory_byte_size",
            )
        if offset + size > region.status.byte_size:
            raise RequestError(
                f"{owner} uses bytes {offset} to {offset + size} of shared memory region `{region.status.name}`, "
                f"which has only {region.status.byte_size} bytes"
            )
        if size > self._max_bytes:
            raise BodyTooLargeError(
                f"{owner} is larger than {self._max_bytes} bytes", hint="the server's limit is --max-body"
            )
        return RegionSlice(region, offset, size)


NO_SHARED_MEMORY = SharedMemory(allowed=False, max_bytes=0)
"""For servers without shared memory: refuses all regions."""


def _open(key: str, offset: int, byte_size: int) -> int:
    """Open a POSIX shared memory object that contains these bytes; return the file descriptor."""
    if not _KEY.fullmatch(key):
        raise RequestError(
            f"`{key[:40]}` is not a valid name of a shared memory object", hint="use one like /my_region"
        )
    if byte_size < 1 or offset < 0:
        raise RequestError("a region needs at least one byte, and an offset of zero or more")
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        file = os.open(f"{_DIRECTORY}/{key.removeprefix('/')}", flags)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "the name cannot be encoded"
        raise RequestError(f"cannot open shared memory object `{key}`: {reason}") from error
    found = os.fstat(file)
    if stat.S_ISREG(found.st_mode) and offset + byte_size <= found.st_size:
        return file
    os.close(file)
    if not stat.S_ISREG(found.st_mode):
        raise RequestError(f"`{key}` is not a shared memory object")
    raise RequestError(
        f"shared memory object `{key}` has {found.st_size} bytes, but the region ends at {offset + byte_size}"
    )


def cuda_unsupported() -> UnsupportedError:
    """Return the error for registering CUDA shared memory."""
    return UnsupportedError(
        "this server does not support CUDA shared memory", hint="use system shared memory, or send the bytes"
    )
