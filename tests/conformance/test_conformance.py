"""Every call of the protocol: what a Triton alone answers, Shoal answers, with one and with three.

Each call is asked when its model is resident, and, by the first request after its eviction, when it
is not. Answers are the same byte for byte, but for the listed differences.
"""

import re
from collections.abc import Container
from pathlib import Path

import pytest
from tritonclient.grpc import service_pb2

from services.embedded.background import BackgroundStack
from tests.conformance import models, running
from tests.conformance.administration import LAST
from tests.conformance.calls import STREAM, Outcome
from tests.conformance.cases import CASES, Case
from tests.conformance.differences import DIFFERENCES, same
from tests.support.stack import Fleet

pytestmark = pytest.mark.triton

ALL = {case.name: case for case in (*CASES, *LAST)}
PAGE = Path(__file__).resolve().parents[2] / "docs" / "compatibility.md"

Answers = dict[tuple[str, str], Outcome]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    models.write(folder)
    return folder


@pytest.fixture(scope="module")
def alone(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    """What a Triton answers that has all the models loaded."""
    return running.of_triton(tmp_path_factory.mktemp("server"), repository, CASES, LAST)


def asked(repository: Path, servers: int, cold: Container[str]) -> Answers:
    with BackgroundStack(
        f"--repository={repository}",
        f"--servers={servers}",
        *("--memory-budget=16GiB", "--lane=on"),
        "--trace-ratio=0",
        "--no-otlp",
        environment={"SHOAL_ROUTER_SHARED_MEMORY": "true"},
    ) as stack:
        return running.of_shoal(Fleet(stack), CASES, LAST, cold)


@pytest.fixture(scope="module")
def one(repository: Path, alone: dict[str, Outcome]) -> Answers:
    """Cold for a case of each kind of model and way of asking, and for one of each way refused."""
    calls = ("ModelInfer", STREAM)
    picked = {
        (
            case.kind if alone[case.name].code == "OK" else "refused",
            case.method in calls and case.method,
        ): case.name
        for case in CASES
        if case.kind
    }
    return asked(repository, 1, frozenset(picked.values()))


@pytest.fixture(scope="module")
def three(repository: Path) -> Answers:
    """Cold for a case of each kind of model."""
    return asked(repository, 3, frozenset({case.kind: case.name for case in CASES}.values()))


def agree(case: Case, triton: Outcome, shoal: Outcome) -> None:
    if case.differs:
        DIFFERENCES[case.differs].holds(case.method, triton, shoal)
    else:
        same(case.method, triton, shoal)


def check(alone: dict[str, Outcome], found: Answers, name: str) -> None:
    assert (name, running.WARM) in found
    for state in running.STATES:
        if (name, state) in found:
            agree(ALL[name], alone[name], found[name, state])


@pytest.mark.parametrize("name", ALL)
def test_with_one_server(alone: dict[str, Outcome], one: Answers, name: str) -> None:
    check(alone, one, name)


@pytest.mark.parametrize("name", ALL)
def test_with_three_servers(alone: dict[str, Outcome], three: Answers, name: str) -> None:
    check(alone, three, name)


@pytest.mark.soak
@pytest.mark.parametrize("servers", [1, 3])
def test_each_case_cold_as_well(alone: dict[str, Outcome], repository: Path, servers: int) -> None:
    found = asked(repository, servers, frozenset(ALL))
    for case in CASES:
        assert not case.kind or (case.name, running.COLD) in found
        check(alone, found, case.name)


def test_every_call_of_the_protocol_is_asked() -> None:
    service = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    assert {method.name for method in service.methods} <= {case.method for case in ALL.values()}
    assert len(service.methods) == 20


def test_every_difference_is_shown_and_documented() -> None:
    assert {case.differs for case in ALL.values()} - {""} == set(DIFFERENCES)
    rows = dict(re.findall(r"^\| (.+?) \| (.+?) \|$", PAGE.read_text(), re.MULTILINE))
    for difference in DIFFERENCES.values():
        assert rows[difference.what] == difference.why
