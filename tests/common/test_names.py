"""Which names and versions are allowed, and resource names there and back."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal import names

GOOD_MODELS = ["a", "A", "7", "densenet_onnx", "a.b", "a-b", "0_1", "v1.2.3", "x" * 255]
GOOD_MODELS += ["_a", "a..b", "a..", "a+b", "user@model", "+", "@", "__main__", "a@sha-1.0+cpu"]
BAD_MODELS = [
    "",
    ".",
    "..",
    "../outside",
    "a/b",
    "a\\b",
    "...",
    "-a",
    ".a",
    "a b",
    " a",
    "a\n",
    "a\x00",
    "é",
    "aé",
    "a%2e",
    "a:1",
    "a,b",
    "a=b",
    "a~",
    "a$(id)",
    "a&b",
    "x" * 256,
]
GOOD_ALIASES = ["stable", "a", "Canary", "a-b_c", "v1", "x" * 128]
BAD_ALIASES = ["", "1", "1a", "-a", "_a", "a.b", "a b", "a\n", "a/b", "é", "x" * 129]
GOOD_VERSIONS = {"1": 1, "10": 10, "9223372036854775807": 2**63 - 1}
BAD_VERSIONS = [
    "",
    "0",
    "00",
    "01",
    "-1",
    "+1",
    "-3",
    "1.0",
    "1e3",
    "1_000",
    " 1",
    "1 ",
    "1\n",
    "0x1",
    "²",
    "١",
    "9223372036854775808",
    "9" * 19,
    "1" + "0" * 100,
]

models = st.from_regex(names.MODEL_NAME, fullmatch=True).filter(names.is_model_name)
aliases = st.from_regex(names.ALIAS, fullmatch=True).filter(names.is_alias)
versions = st.integers(1, names.MAX_VERSION)
anything = st.text(max_size=30) | st.text("aA0._-/", max_size=8)


@pytest.mark.parametrize("text", GOOD_MODELS)
def test_model_names_that_are_allowed(text: str) -> None:
    assert names.is_model_name(text)


@pytest.mark.parametrize("text", BAD_MODELS)
def test_model_names_that_are_not(text: str) -> None:
    assert not names.is_model_name(text)


@pytest.mark.parametrize("text", GOOD_ALIASES)
def test_aliases_that_are_allowed(text: str) -> None:
    assert names.is_alias(text)


@pytest.mark.parametrize("text", BAD_ALIASES)
def test_aliases_that_are_not(text: str) -> None:
    assert not names.is_alias(text)


@pytest.mark.parametrize(("text", "number"), GOOD_VERSIONS.items())
def test_versions_that_are_allowed(text: str, number: int) -> None:
    assert names.parse_version(text) == number


@pytest.mark.parametrize("text", BAD_VERSIONS)
def test_versions_that_are_not(text: str) -> None:
    assert names.parse_version(text) is None


@given(versions)
def test_every_version_is_spelled_in_one_way(number: int) -> None:
    assert names.parse_version(str(number)) == number


@given(anything | st.from_regex(r"[+-]?[0-9_ ]{1,21}"))
def test_a_text_is_a_version_only_as_the_number_spells_itself(text: str) -> None:
    number = names.parse_version(text)
    if number is not None:
        assert str(number) == text
        assert 1 <= number <= names.MAX_VERSION


@given(models | anything)
def test_an_allowed_name_stays_in_its_folder(text: str) -> None:
    if names.is_model_name(text):
        inside = Path("/repository") / text
        assert inside.parent == Path("/repository")
        assert inside.name == text
        assert text.split("/") == [text]
        assert len(text.encode()) <= 255


@given(aliases | anything)
def test_an_alias_is_never_a_version(text: str) -> None:
    assert not (names.is_alias(text) and names.parse_version(text) is not None)


# --- resource names -------------------------------------------------------------------------------


@given(models, versions, aliases)
def test_there_and_back(model: str, version: int, alias: str) -> None:
    assert names.parse_model_name(names.model_name(model)) == model
    assert names.parse_version_name(names.version_name(model, version)) == (model, version)
    assert names.parse_alias_name(names.alias_name(model, alias)) == (model, alias)
    assert names.parse_policy_name(names.policy_name(model)) == model
    assert str(names.ModelVersionName(model, version)) == names.version_name(model, version)


PARSERS: dict[Callable[[str], object], str] = {
    names.parse_model_name: "models/{}",
    names.parse_version_name: "models/{}/versions/1",
    names.parse_alias_name: "models/{}/aliases/stable",
    names.parse_policy_name: "models/{}/trafficPolicy",
}


@pytest.mark.parametrize("parse", PARSERS, ids=lambda parse: parse.__name__)
def test_each_name_is_of_one_kind(parse: Callable[[str], object]) -> None:
    for other, template in PARSERS.items():
        found = parse(template.format("m"))
        assert (found is not None) == (other is parse), template


@pytest.mark.parametrize("parse", PARSERS, ids=lambda parse: parse.__name__)
@pytest.mark.parametrize("model", BAD_MODELS)
def test_a_bad_model_spoils_every_name(parse: Callable[[str], object], model: str) -> None:
    assert parse(PARSERS[parse].format(model)) is None


@pytest.mark.parametrize("parse", PARSERS, ids=lambda parse: parse.__name__)
@pytest.mark.parametrize("change", ["{}/", "/{}", " {}", "{}\n", "x{}", "{}/more"])
def test_nothing_more_and_nothing_less(parse: Callable[[str], object], change: str) -> None:
    assert parse(change.format(PARSERS[parse].format("m"))) is None


@pytest.mark.parametrize("version", BAD_VERSIONS)
def test_a_bad_version_spoils_the_name(version: str) -> None:
    assert names.parse_version_name(f"models/m/versions/{version}") is None


@pytest.mark.parametrize("alias", BAD_ALIASES)
def test_a_bad_alias_spoils_the_name(alias: str) -> None:
    assert names.parse_alias_name(f"models/m/aliases/{alias}") is None


def test_names_of_servers_and_replicas() -> None:
    assert names.server_name("t0") == "servers/t0"
    assert names.replica_name("t0", "m", 7) == "servers/t0/replicas/m:7"
