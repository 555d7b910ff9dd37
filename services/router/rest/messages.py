"""Writes messages of Triton's protocol in JSON as its HTTP server does."""

from typing import Any

from google.protobuf.descriptor import FieldDescriptor


def document(message: Any) -> dict[str, Any]:
    """Return a message as an object with the proto's field names. 64-bit numbers are numbers, enums
    are names, and defaults are written out, except for messages and choices that are not set."""
    found: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        if field.has_presence and not message.HasField(field.name):
            continue
        value = getattr(message, field.name)
        if _is_map(field):
            inner = field.message_type.fields_by_name["value"]
            found[field.name] = {str(key): _one(inner, value[key]) for key in value}
        elif field.is_repeated:
            found[field.name] = [_one(field, element) for element in value]
        else:
            found[field.name] = _one(field, value)
    return found


def _one(field: Any, value: Any) -> Any:
    if field.type == FieldDescriptor.TYPE_MESSAGE:
        return document(value)
    if field.type == FieldDescriptor.TYPE_ENUM:
        return field.enum_type.values_by_number[value].name
    return value


def _is_map(field: Any) -> bool:
    kind = field.message_type
    return kind is not None and kind.GetOptions().map_entry
