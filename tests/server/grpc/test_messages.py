"""The protocol's messages equal tritonclient's, and both work in one process."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator

import pytest
import tritonclient.grpc.model_config_pb2 as their_config
import tritonclient.grpc.service_pb2 as theirs
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor

from demi.server.grpc import generate
from demi.server.grpc.calls import snake_case
from demi.server.grpc.messages import pool, service

OURS = pool().FindFileByName("inference.proto")


def messages(of: dict[str, Descriptor]) -> Iterator[Descriptor]:
    """Return these messages and those nested in them."""
    for message in of.values():
        yield message
        yield from messages(message.nested_types_by_name)


def shape(field: FieldDescriptor) -> tuple[object, ...]:
    """Return all properties of a field that affect the wire format."""
    kind = field.message_type or field.enum_type
    oneof = field.containing_oneof.name if field.containing_oneof else None
    return field.number, field.type, field.is_repeated, kind.full_name if kind else None, oneof


def different(ours: Descriptor, their: Descriptor) -> list[str]:
    """Return the fields that differ."""
    known = {field.name: shape(field) for field in their.fields}
    return [field.name for field in ours.fields if known.get(field.name) != shape(field)]


@pytest.mark.parametrize("message", messages(OURS.message_types_by_name), ids=lambda message: message.full_name)
def test_every_message_is_that_of_tritonclient(message):
    """All fields have the number, type, label and oneof of tritonclient; only the configuration is a subset."""
    their = theirs.DESCRIPTOR.pool.FindMessageTypeByName(message.full_name)

    assert [] == different(message, their)
    if their.file.name == theirs.DESCRIPTOR.name:
        assert {field.name for field in their.fields} == {field.name for field in message.fields}


def test_a_wrong_number_is_found():
    """The comparison finds a wrong field number."""
    one, other = (OURS.message_types_by_name[name] for name in ("ModelReadyRequest", "ServerMetadataResponse"))

    assert [] == different(one, one)
    assert ["extensions"] == different(other, one)


def test_the_datatypes_are_those_of_tritonclient():
    """Datatypes in the configuration have the numbers of tritonclient."""
    ours: EnumDescriptor = OURS.enum_types_by_name["DataType"]
    their = their_config.DESCRIPTOR.enum_types_by_name["DataType"]

    assert [(value.name, value.number) for value in their.values] == [(v.name, v.number) for v in ours.values]


def test_every_method_is_there():
    """The service has all methods of tritonclient, with the same messages and streams."""
    ours, their = service("inference.GRPCInferenceService"), theirs.DESCRIPTOR.services_by_name["GRPCInferenceService"]

    def signature(methods: object) -> list[tuple[object, ...]]:
        return [
            (m.name, m.input_type.full_name, m.output_type.full_name, m.client_streaming, m.server_streaming)
            for m in methods
        ]

    assert sorted(signature(their.methods)) == sorted(signature(ours.methods))


def test_generated_files_are_up_to_date():
    """The generated files are up to date, apart from formatting of the types."""
    made = generate.generate()

    assert made[generate.DESCRIPTORS] == (generate.HERE / generate.DESCRIPTORS).read_bytes()
    for name in ("inference.pyi", "health.pyi"):
        assert declared(made[name].decode()) == declared((generate.HERE / name).read_text())


def declared(types: str) -> list[str]:
    """Return classes and members that a .pyi file declares."""
    return re.findall(r"^ *(?:class )?\w+(?=[:(])", types, re.MULTILINE)


@pytest.mark.parametrize(
    "order", ["demi.server.grpc.inference, tritonclient.grpc", "tritonclient.grpc, demi.server.grpc.inference"]
)
def test_a_client_and_the_server_in_one_process(order):
    """tritonclient and the server can be imported in one process despite the same message names."""
    subprocess.run([sys.executable, "-c", f"import {order}"], check=True)


@pytest.mark.parametrize(("name", "snake"), [("ModelInfer", "model_infer"), ("Check", "check")])
def test_names_of_methods(name, snake):
    """Method names are converted to snake case."""
    assert snake == snake_case(name)
