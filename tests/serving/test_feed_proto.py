"""The generated code is that of `feed.proto`, which it can be asked for without protoc; if not: see CONTRIBUTING.md."""

import re

from google.protobuf import descriptor_pb2

from serving import feed_pb2
from tests.conftest import ROOT

FIELD = descriptor_pb2.FieldDescriptorProto
SCALARS = {
    FIELD.TYPE_BOOL: "bool",
    FIELD.TYPE_DOUBLE: "double",
    FIELD.TYPE_INT64: "int64",
    FIELD.TYPE_STRING: "string",
}


def kind(field: descriptor_pb2.FieldDescriptorProto) -> str:
    return SCALARS[field.type] if field.type in SCALARS else field.type_name.rpartition(".")[2]


def of_field(field: descriptor_pb2.FieldDescriptorProto, maps: dict[str, str]) -> str:
    of = f"{kind(field)} {field.name} = {field.number};"
    if kind(field) in maps:
        return of.replace(kind(field), maps[kind(field)], 1)
    if field.label == FIELD.LABEL_REPEATED:
        return f"repeated {of}"
    return f"optional {of}" if field.proto3_optional else of


def of_message(message: descriptor_pb2.DescriptorProto) -> str:
    maps: dict[str, str] = {}
    for entry in message.nested_type:
        assert entry.options.map_entry
        key, value = entry.field
        maps[entry.name] = f"map<{kind(key)}, {kind(value)}>"
    parts: list[str] = []
    for place, choice in enumerate(message.oneof_decl):
        fields = [field for field in message.field if field.HasField("oneof_index") and field.oneof_index == place]
        if not any(field.proto3_optional for field in fields):
            parts += [f"oneof {choice.name} {{", *(of_field(field, maps) for field in fields), "}"]
    alone = [field for field in message.field if field.proto3_optional or not field.HasField("oneof_index")]
    parts += [of_field(field, maps) for field in alone]
    return " ".join([f"message {message.name} {{", *parts, "}"])


def of_enum(enum: descriptor_pb2.EnumDescriptorProto) -> str:
    return " ".join([f"enum {enum.name} {{", *(f"{value.name} = {value.number};" for value in enum.value), "}"])


def of_service(service: descriptor_pb2.ServiceDescriptorProto) -> str:
    def short(name: str) -> str:
        return name.rpartition(".")[2]

    calls = [f"rpc {c.name}({short(c.input_type)}) returns ({short(c.output_type)});" for c in service.method]
    return " ".join([f"service {service.name} {{", *calls, "}"])


def test_the_generated_code_is_that_of_the_proto_file() -> None:
    generated = descriptor_pb2.FileDescriptorProto()
    feed_pb2.DESCRIPTOR.CopyToProto(generated)
    blocks = [*map(of_service, generated.service), *map(of_message, generated.message_type)]
    blocks += map(of_enum, generated.enum_type)
    text = re.sub(r"//.*", "", (ROOT / generated.name).read_text())
    head, *written = re.split(r"(?m)^(?=message|enum|service)", text)
    assert " ".join(head.split()) == f'syntax = "{generated.syntax}"; package {generated.package};'
    assert sorted(" ".join(block.split()) for block in written) == sorted(blocks)
