"""The messages of Envoy's API (v3), as far as the lane uses them.

`xds.json` lists their fields, by number and type as in Envoy 1.40. The package on PyPI with all of
Envoy's messages replaces files of OpenTelemetry's with older ones, so it cannot be installed beside
them."""

import json
from importlib.resources import files
from typing import Any, Final

from google.protobuf import (
    any_pb2,
    descriptor_pb2,
    descriptor_pool,
    duration_pb2,
    json_format,
    message_factory,
    struct_pb2,
    wrappers_pb2,
)

TYPE: Final = "type.googleapis.com/"
_WELL_KNOWN: Final = (any_pb2, duration_pb2, struct_pb2, wrappers_pb2)
_Field = descriptor_pb2.FieldDescriptorProto
_SCALARS: Final = {
    "bool": _Field.TYPE_BOOL,
    "bytes": _Field.TYPE_BYTES,
    "double": _Field.TYPE_DOUBLE,
    "int32": _Field.TYPE_INT32,
    "int64": _Field.TYPE_INT64,
    "string": _Field.TYPE_STRING,
    "uint32": _Field.TYPE_UINT32,
    "uint64": _Field.TYPE_UINT64,
}


def message(name: str) -> Any:
    """Return a new, empty message of the type with that full name."""
    return message_factory.GetMessageClass(_POOL.FindMessageTypeByName(name))()


def parsed(name: str, content: dict[str, Any]) -> Any:
    """Return a message with `content`, in protobuf's JSON form."""
    return json_format.ParseDict(content, message(name), descriptor_pool=_POOL)


def _pool() -> descriptor_pool.DescriptorPool:
    pool = descriptor_pool.DescriptorPool()
    for module in _WELL_KNOWN:
        pool.AddSerializedFile(module.DESCRIPTOR.serialized_pb)
    known = json.loads(files(__package__).joinpath("xds.json").read_text())
    file = descriptor_pb2.FileDescriptorProto(
        name="envoy.proto",
        syntax="proto3",
        dependency=[module.DESCRIPTOR.name for module in _WELL_KNOWN],
    )
    # One file has one package. Full names are nested messages' here, which comes to the same.
    root = _Scope(file.message_type, file.enum_type)
    for name, values in known["enums"].items():
        enum = root.within(name).enums.add(name=name.rpartition(".")[2])
        for value, number in values.items():
            enum.value.add(name=value, number=number)
    for name, fields in known["messages"].items():
        described = root.within(name).message(name.rpartition(".")[2])
        for field, text in fields.items():
            _add_field(described, field, text, known["enums"])
    pool.Add(file)
    return pool


class _Scope:
    """A place for messages and enums: the file's, or a message's for those nested in it."""

    def __init__(self, messages: Any, enums: Any) -> None:
        self._messages = messages
        self.enums = enums
        self._nested: dict[str, _Scope] = {}

    def within(self, name: str) -> "_Scope":
        """Return the place of the message or enum with that full name."""
        scope = self
        for part in name.split(".")[:-1]:
            described = scope.message(part)
            scope = scope._nested.setdefault(
                part, _Scope(described.nested_type, described.enum_type)
            )
        return scope

    def message(self, name: str) -> Any:
        """Return the description of a message in this place, made if need be."""
        for described in self._messages:
            if described.name == name:
                return described
        return self._messages.add(name=name)


def _add_field(described: Any, name: str, text: str, enums: dict[str, Any]) -> None:
    """Add a field. `text` has its number, `repeated` or `map`, and its type."""
    number, *label, kind = text.split(" ")
    field = described.field.add(name=name, number=int(number), label=_Field.LABEL_OPTIONAL)
    if label == ["map"]:
        entry = described.nested_type.add(name=f"{name.title().replace('_', '')}Entry")
        entry.options.map_entry = True
        key = entry.field.add(name="key", number=1, label=_Field.LABEL_OPTIONAL)
        key.type = _Field.TYPE_STRING
        value = entry.field.add(name="value", number=2, label=_Field.LABEL_OPTIONAL)
        _set_type(value, kind, enums)
        field.label = _Field.LABEL_REPEATED
        field.type = _Field.TYPE_MESSAGE
        field.type_name = entry.name
        return
    if label:
        field.label = _Field.LABEL_REPEATED
    _set_type(field, kind, enums)


def _set_type(field: Any, kind: str, enums: dict[str, Any]) -> None:
    if kind in _SCALARS:
        field.type = _SCALARS[kind]
    else:
        field.type = _Field.TYPE_ENUM if kind in enums else _Field.TYPE_MESSAGE
        field.type_name = f".{kind}"


_POOL: Final = _pool()
