"""The error tree of all services, its documented reasons, and every place that makes an error."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from string import Formatter
from typing import Any

import pytest
from google.rpc import code_pb2

from services.common import errors
from services.common.codes import Code
from services.common.errors import InvalidName, NotReady, ShoalError
from services.controller.core import errors as controller_errors
from services.registry.core import errors as registry_errors
from services.router.core import errors as router_errors
from services.router.core.errors import MessageTooLarge
from shoal.errors.v1.errors_pb2 import ErrorReason

ROOT = Path(__file__).resolve().parents[2]
MODULES = tuple(
    module.__name__ for module in (errors, registry_errors, controller_errors, router_errors)
)
PREFIX = "ERROR_REASON_"


def leaves(base: type[ShoalError] = ShoalError) -> Iterator[type[ShoalError]]:
    for error in base.__subclasses__():
        yield error
        yield from leaves(error)


ERRORS = sorted(
    (error for error in leaves() if error.__module__.startswith("services.")),
    key=lambda error: error.__name__,
)
BY_NAME = {error.__name__: error for error in ERRORS}


def variables(error: type[ShoalError]) -> set[str]:
    return {field for _, field, _, _ in Formatter().parse(error.template) if field is not None}


def make(error: Any, **more: object) -> ShoalError:
    made: ShoalError = error(**{name: f"<{name}>" for name in variables(error)}, **more)
    return made


def documented() -> dict[str, str]:
    """Return code by reason, from the comments of errors.proto."""
    text = (ROOT / "protos/shoal/errors/v1/errors.proto").read_text()
    rows = re.findall(rf"((?:  //.*\n)+)  {PREFIX}(\w+) = \d+;", text)
    return {reason: re.findall(r"\A\s*// (\w+): ", comment)[0] for comment, reason in rows}


def users_of_errors() -> Iterator[tuple[Path, ast.Module, set[str]]]:
    """Yield the files that import errors by name, with those names."""
    for path in sorted([*ROOT.glob("services/**/*.py"), *ROOT.glob("shoal/**/*.py")]):
        source = path.read_bytes()
        if any(module.encode() in source for module in MODULES):
            tree = ast.parse(source)
            imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
            names = {
                alias.name for node in imports if node.module in MODULES for alias in node.names
            }
            yield path.relative_to(ROOT), tree, names


# --- reasons and codes ----------------------------------------------------------------------------


def test_every_error_has_a_reason_of_its_own_and_every_reason_an_error() -> None:
    reasons = [error.reason for error in ERRORS]
    assert len(reasons) == len(set(reasons))
    values = {name.removeprefix(PREFIX) for name in ErrorReason.keys()}  # noqa: SIM118
    assert set(reasons) == values - {"UNSPECIFIED"}


@pytest.mark.parametrize("error", ERRORS)
def test_the_code_is_the_documented_one(error: type[ShoalError]) -> None:
    assert error.code.name == documented()[error.reason]


def test_every_reason_is_documented() -> None:
    assert documented().keys() == {error.reason for error in ERRORS}


def test_codes_have_grpcs_numbers() -> None:
    assert {code.name: code.value for code in Code}.items() <= dict(code_pb2.Code.items()).items()


def test_the_whole_tree_stands_where_it_is_looked_for() -> None:
    bases = [
        f"{path}: {node.name}"
        for path, tree, names in users_of_errors()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
        and ".".join(path.with_suffix("").parts) not in MODULES
        and any(isinstance(base, ast.Name) and base.id in names for base in node.bases)
    ]
    assert bases == []


def test_an_error_stands_where_it_is_raised() -> None:
    """An error that only one service uses stands in that service, and all others in common."""
    users: dict[str, set[str]] = {error.__name__: set() for error in ERRORS}
    for path, _, names in users_of_errors():
        for used in names & users.keys():
            users[used].add(path.parts[1] if path.parts[0] == "services" else "common")
    for error in ERRORS:
        home = error.__module__.split(".")[1]
        assert users[error.__name__] == {home} or home == "common", error
        shared = len(users[error.__name__]) > 1 or "common" in users[error.__name__]
        assert shared or home != "common", f"{error} is only used in {users[error.__name__]}"


# --- texts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", ERRORS)
def test_every_variable_of_the_text_is_metadata(error: type[ShoalError]) -> None:
    made = make(error)
    assert made.metadata.keys() == variables(error)
    for value in made.metadata.values():
        assert value in made.message
    assert made.message == str(made)
    assert variables(error), "a text without a variable says nothing of this case"


@pytest.mark.parametrize("error", ERRORS)
def test_a_variable_may_hold_anything(error: Any) -> None:
    made = error(**dict.fromkeys(variables(error), "{model} %s {} \n"))
    assert set(made.metadata.values()) == {"{model} %s {} \n"}
    assert "{model} %s {}" in made.message


@pytest.mark.parametrize("error", ERRORS)
def test_a_variable_that_is_missing_is_noticed_at_once(error: Any) -> None:
    given = dict.fromkeys(variables(error), "x")
    given.popitem()
    with pytest.raises((KeyError, TypeError)):
        error(**given)


def test_values_become_text() -> None:
    made = MessageTooLarge(size=3, limit=2)
    assert made.metadata == {"size": "3", "limit": "2"}


def test_a_name_that_is_not_allowed_is_not_repeated_in_full() -> None:
    assert InvalidName("model_name", "x" * 10_000).metadata["value"] == "x" * 256


def test_a_retry_is_told_apart_from_the_text() -> None:
    assert make(NotReady).retry_after is None
    made = make(NotReady, retry_after=1.5)
    assert made.retry_after == 1.5
    assert "retry_after" not in made.metadata


# --- where errors are made ------------------------------------------------------------------------


def made_in_code() -> Iterator[tuple[str, type[ShoalError], ast.Call]]:
    """Yield the place of each call that makes an error, the error and the call."""
    for path, tree, names in users_of_errors():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                error = BY_NAME.get(node.func.id)
                if error is not None and error.__name__ in names:
                    yield f"{path}:{node.lineno}", error, node


def test_every_call_gives_the_variables_of_its_text() -> None:
    """Otherwise only a refused request would find a mistake, as INTERNAL."""
    wrong = []
    for where, error, call in made_in_code():
        given = {keyword.arg for keyword in call.keywords} - {"retry_after"}
        if error is InvalidName:
            given |= set(["field", "value"][: len(call.args)])
        if given != variables(error) and None not in given:
            wrong.append(f"{where}: {error.__name__} takes {variables(error)}, not {given}")
    assert wrong == []


def test_every_error_is_made_somewhere() -> None:
    assert {error for _, error, _ in made_in_code()} == set(ERRORS)
