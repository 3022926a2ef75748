"""The protocol's messages from their descriptors, in a pool of their own.

Protobuf's generated code registers its names for the whole process, and tritonclient registers the same ones: the second
to come would fail. It also asks for one version of protobuf; descriptors go with any.
"""

from __future__ import annotations

import functools
from importlib.resources import files
from typing import Any

from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

DESCRIPTORS = "protocol.binpb"


@functools.cache
def pool() -> DescriptorPool:
    """The descriptors of `inference.proto` and `health.proto`."""
    result = DescriptorPool()
    for file in FileDescriptorSet.FromString(files(__package__).joinpath(DESCRIPTORS).read_bytes()).file:
        result.AddSerializedFile(file.SerializeToString())
    return result


def messages(proto: str) -> dict[str, Any]:
    """The class of every message of a file, by its name."""
    found = pool().FindFileByName(proto).message_types_by_name
    return {name: GetMessageClass(descriptor) for name, descriptor in found.items()}


def service(name: str) -> ServiceDescriptor:
    """A service by its full name: its methods, and the messages that they take and give."""
    return pool().FindServiceByName(name)
