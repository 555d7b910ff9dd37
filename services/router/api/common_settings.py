"""Combines the trace settings or log settings of several servers into one answer."""

from collections.abc import Iterable
from typing import Any

from tritonclient.grpc import service_pb2


def common_trace(answers: Iterable[bytes]) -> Any:
    """Return an inference.TraceSettingResponse with every value that a server has for a setting,
    which is one value where all agree. `answers` are serialized, in the order of the servers."""
    found = service_pb2.TraceSettingResponse()
    for answer in answers:
        response = service_pb2.TraceSettingResponse.FromString(answer)
        for name, setting in response.settings.items():
            values = found.settings[name].value
            values.extend(value for value in setting.value if value not in values)
    return found


def common_log(answers: Iterable[bytes]) -> Any:
    """Return an inference.LogSettingsResponse. Where servers differ, the most verbose setting
    stands: a switch is on if it is on anywhere, a level is the highest, and all texts are
    listed."""
    found = service_pb2.LogSettingsResponse()
    for answer in answers:
        response = service_pb2.LogSettingsResponse.FromString(answer)
        for name, setting in response.settings.items():
            into = found.settings[name]
            kind = setting.WhichOneof("parameter_choice")
            if kind is None:
                continue
            value = getattr(setting, kind)
            if into.WhichOneof("parameter_choice") != kind:
                setattr(into, kind, value)
            elif kind == "string_param":
                if value not in into.string_param.split(", "):
                    into.string_param = f"{into.string_param}, {value}"
            else:
                setattr(into, kind, max(getattr(into, kind), value))
    return found
