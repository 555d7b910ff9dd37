"""Calls that change a server, or show what was changed; asked last, and in this order."""

from typing import Any, Final

from tests.conformance.cases import Case, case, message, one

LAST: Final[list[Case]] = []


def _load(name: str, kind: str, model: str, *, differs: str = "", **parameters: Any) -> None:
    def make(_: str) -> list[Any]:
        made = message("RepositoryModelLoad", model_name=model)
        for key, value in parameters.items():
            if isinstance(value, bytes):
                made.parameters[key.replace("__", ":")].bytes_param = value
            else:
                made.parameters[key].string_param = value
        return [made]

    case(name, kind, make, method="RepositoryModelLoad", differs=differs, into=LAST)


def _unload(name: str, model: str, *, differs: str = "", dependents: bool = False) -> None:
    def make(_: str) -> list[Any]:
        made = message("RepositoryModelUnload", model_name=model)
        made.parameters["unload_dependents"].bool_param = dependents
        return [made]

    case(name, "", make, method="RepositoryModelUnload", differs=differs, into=LAST)


def plain(method: str, title: str, *, differs: str = "", **fields: Any) -> None:
    case(
        title,
        "",
        one(lambda _: message(method, **fields)),
        method=method,
        differs=differs,
        into=LAST,
    )


def setting(method: str, name: str, differs: str = "", model: str = "", **values: Any) -> None:
    def make(_: str) -> list[Any]:
        made = message(method)
        if model:
            made.model_name = model
        for key, value in values.items():
            if method == "TraceSetting":
                made.settings[key].value.extend([value])
            elif isinstance(value, bool):
                made.settings[key].bool_param = value
            elif isinstance(value, int):
                made.settings[key].uint32_param = value
            else:
                made.settings[key].string_param = value
        return [made]

    case(name, "", make, method=method, differs=differs, into=LAST)


_load("a model", "", "text_stats")
_load("no such model", "", "nobody", differs="unknown")
_load("a model that cannot be loaded", "", "broken", differs="paths")
_load("no name", "", "", differs="unknown")
_load("with a config", "", "text_stats", config="{}", differs="parameters of a load")
_load("with files", "", "text_stats", config="{}", file__1=b"", differs="parameters of a load")
_unload("a model", "text_stats")
_unload("a model again", "text_stats")
_unload("no such model", "nobody")
_unload("with what needs it", "chain", dependents=True)

setting("TraceSetting", "what is set", "encoding")
setting("TraceSetting", "of a model", "encoding", model="echo-0")
setting("TraceSetting", "of no such model", model="nobody")
setting("TraceSetting", "a rate", "encoding", trace_rate="7")
setting("TraceSetting", "a level that there is not", "encoding", trace_level="EVERYTHING")
setting("TraceSetting", "no such setting", "encoding", trace_color="red")
setting("LogSettings", "what is set", "encoding")
setting("LogSettings", "a level", "encoding", log_verbose_level=0)
setting("LogSettings", "no such setting", "encoding", log_color="red")
setting("LogSettings", "a level of another type", log_verbose_level="high")

REGISTRATIONS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("System", {"key": "/nobody", "offset": 0, "byte_size": 16}),
    ("Cuda", {"raw_handle": b"nothing", "device_id": 0, "byte_size": 16}),
)
for kind, registration in REGISTRATIONS:
    plain(f"{kind}SharedMemoryStatus", "none")
    plain(f"{kind}SharedMemoryStatus", "no such region", name="nobody")
    plain(f"{kind}SharedMemoryRegister", "no such memory", name="nobody", **registration)
    plain(f"{kind}SharedMemoryUnregister", "no such region", name="nobody")
    plain(f"{kind}SharedMemoryUnregister", "all")
