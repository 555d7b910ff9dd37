"""What ARCHITECTURE.md says is absent, is absent."""

import ast
import re
from collections.abc import Collection, Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SERVICES = ("registry", "controller", "router")
HOUSES = (*SERVICES, "common", "embedded", "simulator")
CORE = sorted(ROOT.glob("services/*/core/**/*.py"))
SOURCES = sorted([*ROOT.glob("services/**/*.py"), *ROOT.glob("shoal/**/*.py")])

PURE = {
    *("abc", "base64", "binascii", "bisect", "collections", "dataclasses", "enum", "functools"),
    *("hashlib", "heapq", "itertools", "json", "math", "operator", "re", "typing", "zlib"),
}
SHARED = "services.common.codes", "services.common.errors", "shoal.names", "shoal.protobuf"
PURE_FILES = [*CORE, *(ROOT / f"{module.replace('.', '/')}.py" for module in SHARED)]


@cache
def nodes(path: Path) -> list[ast.AST]:
    return list(ast.walk(ast.parse(path.read_text())))


def imports(path: Path) -> Iterator[str]:
    """Every module that the file imports, anywhere in it; `from a import b` gives a and a.b."""
    for node in nodes(path):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            module = node.module or ""
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_there_is_a_core_to_look_at() -> None:
    assert {path.relative_to(ROOT).parts[1] for path in CORE} == set(SERVICES)


@pytest.mark.parametrize("path", PURE_FILES, ids=name)
def test_core_is_pure(path: Path) -> None:
    own = f"services.{path.relative_to(ROOT).parts[1]}.core"
    for module in imports(path):
        allowed = (
            module.split(".")[0] in PURE
            or module.startswith((own, *SHARED))
            or module in ("services.common", "shoal", "pathlib", "pathlib.PurePath")
        )
        assert allowed, f"{name(path)} imports {module}"


@pytest.mark.parametrize("path", PURE_FILES, ids=name)
def test_core_asks_no_clock_and_draws_nothing(path: Path) -> None:
    calls = re.findall(
        r"\b(?:time|random|uuid|os|secrets)\.\w+\(|\bopen\(|\bprint\(", path.read_text()
    )
    assert calls == []


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_who_imports_whom(path: Path) -> None:
    place = path.relative_to(ROOT).parts
    for module in imports(path):
        if not module.startswith("services."):
            continue
        target = module.split(".")[1]
        if place[0] == "shoal":
            allowed = {"shoal/cli/up.py": "embedded", "shoal/cli/simulate.py": "simulator"}
            assert target == allowed.get(name(path)), f"{name(path)} imports {module}"
        elif place[1] == "simulator":
            core = module.startswith("services.controller.core")
            assert target == "simulator" or core, f"{name(path)} imports {module}"
        elif place[1] == "common":
            assert target == "common", f"{name(path)} imports {module}"
        elif place[1] in SERVICES:
            assert target in (place[1], "common"), f"{name(path)} imports {module}"
        else:
            assert target in ("embedded", "common"), f"{name(path)} imports {module}"


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_what_is_installed_needs_only_what_is_installed(path: Path) -> None:
    own = {"bench", "tests", "docs", "examples"}  # in a checkout, not in the wheel
    assert not [module for module in imports(path) if module.split(".")[0] in own]


@pytest.mark.parametrize("service", SERVICES)
def test_rooms_stand_on_floors(service: str) -> None:
    """A room is a module or a package of a service. Imports between rooms only go down."""
    base = ROOT / "services" / service
    floors: dict[str, set[str]] = {}
    for path in base.rglob("*.py"):
        room = path.relative_to(base).parts[0].removesuffix(".py")
        taken = floors.setdefault(room, set())
        for module in imports(path):
            words = module.split(".")
            if words[:2] == ["services", service] and len(words) > 2 and words[2] != room:
                taken.add(words[2])
    TopologicalSorter(floors).prepare()  # raises CycleError, which names the circle


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def below(path: Path, modules: Collection[str]) -> Iterator[str]:
    """Those of the modules that the file imports, anywhere in it.

    `from a import b` counts for a.b where that is a module, else for a.
    """
    for node in nodes(path):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (one if one in modules else node.module for one in inner)


@pytest.mark.parametrize("top", ["services", "shoal"])
def test_no_modules_import_each_other_in_a_circle(top: str) -> None:
    modules = {module_of(path): path for path in SOURCES if name(path).startswith(f"{top}/")}
    graph = {module: set(below(path, modules)) for module, path in modules.items()}
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_the_fast_path_decodes_no_tensor() -> None:
    for path in (
        ROOT / "services/router/unary/forward.py",
        ROOT / "services/router/core/wire/request.py",
    ):
        assert not [m for m in imports(path) if m.startswith(("tritonclient", "numpy"))], path


def test_names_that_say_nothing_are_not_used() -> None:
    vague = re.compile(r"manager|handler|util|helper|misc", re.IGNORECASE)
    for path in SOURCES:
        assert not vague.search(path.stem), name(path)
        named = [node.name for node in nodes(path) if isinstance(node, ast.ClassDef)]
        assert not [n for n in named if vague.search(n)], name(path)


@pytest.mark.parametrize("house", [*(f"services/{house}" for house in HOUSES), "shoal"])
def test_no_two_classes_have_one_name(house: str) -> None:
    places: dict[str, list[str]] = {}
    for path in SOURCES:
        if name(path).startswith(f"{house}/") and "/v1/" not in name(path):
            for node in nodes(path):
                if isinstance(node, ast.ClassDef):
                    places.setdefault(node.name, []).append(name(path))
    assert {word: where for word, where in places.items() if len(where) > 1} == {}


def test_contributors_are_sent_to_files_that_are_there() -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text()
    named = re.findall(r"`((?:services|shoal|tests|protos)/[\w./]+)`", page)
    assert len(named) >= 10
    assert [word for word in named if not (ROOT / word).exists()] == []


def test_modules_stay_small() -> None:
    for path in SOURCES:
        if "/v1/" in name(path):
            continue
        lines = len(path.read_text().splitlines())
        assert lines <= 400, f"{name(path)} has {lines} lines: which idea can move out?"


def test_the_page_names_what_is_there() -> None:
    page = (ROOT / "ARCHITECTURE.md").read_text()
    for word in re.findall(r"`((?:services|shoal|tests|protos|deploy|docs)/[\w./]+)`", page):
        assert (ROOT / word).exists(), word


@pytest.mark.parametrize("part", [*(f"services/{name}" for name in HOUSES), "shoal"])
def test_the_tables_name_every_module_once(part: str) -> None:
    page = (ROOT / "ARCHITECTURE.md").read_text()
    listed: list[str] = []
    for section in re.split(r"^##+ ", page, flags=re.MULTILINE):
        if f"(`{part}`)" in section.split("\n", 1)[0]:
            rows = re.findall(r"^\| (`.*?) \|", section, re.MULTILINE)
            listed += (word for row in rows for word in re.findall(r"`([\w/]+)`", row))
    there = {
        str(path.relative_to(ROOT / part).with_suffix(""))
        for path in (ROOT / part).rglob("*.py")
        if path.stem != "__init__" and not {"v1", "migrations"} & set(path.parts)
    }
    assert sorted(listed) == sorted(there)
