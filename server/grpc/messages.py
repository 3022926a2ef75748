"""Message classes of the protocol, created from descriptors in a private pool.

Protobuf's generated code registers its names process-wide, as does tritonclient with the same names, and the second import
fails. Generated code also requires a certain protobuf version; descriptors work with any.
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
    """Return the pool with the descriptors of `inference.proto` and `health.proto`."""
    result = DescriptorPool()
    for file in FileDescriptorSet.FromString(files(__package__).joinpath(DESCRIPTORS).read_bytes()).file:
        result.AddSerializedFile(file.SerializeToString())
    return result


def messages(proto: str) -> dict[str, Any]:
    """Return the message classes of a .proto file, by name."""
    found = pool().FindFileByName(proto).message_types_by_name
    return {name: GetMessageClass(descriptor) for name, descriptor in found.items()}


def service(name: str) -> ServiceDescriptor:
    """Return the descriptor of a service, with its methods and their message types, by full name."""
    return pool().FindServiceByName(name)
