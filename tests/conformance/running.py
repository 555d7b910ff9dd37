"""Every case asked of a Triton alone, and of a stack whose models come and go."""

import threading
from collections.abc import Container, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import grpc

from shoal.controller.v1 import controller_service_pb2 as controller
from shoal.controller.v1.controller_service_pb2_grpc import ControllerServiceStub
from shoal.registry.v1 import registry_service_pb2 as registry
from shoal.registry.v1 import types_pb2
from tests.conformance import models
from tests.conformance.calls import STREAM, Metadata, Outcome, call
from tests.conformance.cases import Case
from tests.support.stack import Fleet
from tests.support.triton_direct import triton_direct

STATES = COLD, WARM = "cold", "warm"
AT_ONCE = 8
SIZE = 64 << 20  # bytes of a model, more than any of them takes
OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]

# What else has to be there for a model: it is asked with it, and evicted first.
_NEEDS = {"chain": ("multiplier",)}
_NEEDED = {"multiplier": ("chain",)}


def assigned(cases: Iterable[Case]) -> dict[str, str]:
    """The copy of its model that each case asks, evenly; the same one wherever it is asked."""
    turns: dict[str, int] = {}
    found = {}
    for case in cases:
        names = models.copies(case.kind) if case.kind else [""]
        turn = turns[case.kind] = turns.get(case.kind, -1) + 1
        found[case.name] = names[turn % len(names)]
    return found


def of_triton(
    folder: Path, repository: Path, cases: Iterable[Case], last: Iterable[Case]
) -> dict[str, Outcome]:
    """By name of the case. All models are loaded; `last` is asked in the end, in order.

    Two are asked: one that has streams to decoupled models and to others ends now and then."""
    cases = list(cases)
    copy = assigned(cases)
    streams: list[Case] = []
    others: list[Case] = []
    for case in cases:
        decoupled = case.method == STREAM and case.kind == "decoupled"
        (streams if decoupled else others).append(case)
    everything = [name for kind in models.COPIES for name in models.copies(kind)]
    everything.remove("chain")
    return {
        **_ask(folder / "streams", repository, models.copies("decoupled"), copy, streams, ()),
        **_ask(folder / "others", repository, [*everything, "chain"], copy, others, last),
    }


def _ask(
    folder: Path,
    repository: Path,
    names: list[str],
    copy: Mapping[str, str],
    cases: Iterable[Case],
    last: Iterable[Case],
) -> dict[str, Outcome]:
    """`names`: to be loaded, the last one when the others are there."""
    folder.mkdir()
    with ExitStack() as stack:
        server = stack.enter_context(triton_direct(folder, repository))
        sent: Metadata = tuple(server.admin.items())
        channel = stack.enter_context(grpc.insecure_channel(server.address, OPTIONS))

        def ask(case: Case) -> tuple[str, Outcome]:
            requests = case.requests(copy.get(case.name, ""))
            return case.name, call(channel, case.method, requests, (*case.metadata, *sent))

        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(server.load, names[:-1]))
            server.load(names[-1])
            found = dict(pool.map(ask, cases))
        return {**found, **dict(map(ask, last))}


def of_shoal(
    fleet: Fleet, cases: Iterable[Case], last: Iterable[Case], cold: Container[str]
) -> dict[tuple[str, str], Outcome]:
    """By name of the case and whether its model was resident. Those named in `cold` are asked
    twice, the first time just after their model was evicted."""
    cases = list(cases)
    copy = assigned(cases)
    mine = {name: threading.Lock() for kind in models.COPIES for name in models.copies(kind)}
    touched: set[str] = set()
    found: dict[tuple[str, str], Outcome] = {}
    _declare(fleet)
    with ExitStack() as stack:
        channel = stack.enter_context(grpc.insecure_channel(fleet.router_grpc, OPTIONS))
        residency = ControllerServiceStub(
            stack.enter_context(grpc.insecure_channel(fleet.controller_address))
        )

        def ask(case: Case) -> None:
            model = copy.get(case.name, "")
            requests = case.requests(model)
            with ExitStack() as held:
                for name in sorted({model, *case.others, *_NEEDS.get(model, ())} - {""}):
                    held.enter_context(mine[name])
                for state in (COLD, WARM):
                    if state == COLD:
                        if not model or case.name not in cold:
                            continue
                        _evict(residency, [*_NEEDED.get(model, ()), model], touched)
                    outcome = call(channel, case.method, requests, case.metadata)
                    found[case.name, state] = outcome
                touched.update({model, *case.others, *_NEEDS.get(model, ())})

        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(ask, cases))
        for case in last:
            ask(case)
    return found


def _declare(fleet: Fleet) -> None:
    """What the models take: guesses would be so large that they could not all be there at once."""
    for kind in models.COPIES:
        for name in models.copies(kind):
            for number in (1, 2) if name == "multiplier" else (1,):
                version = types_pb2.ModelVersion(
                    name=f"models/{name}/versions/{number}", declared_memory={"ram": SIZE}
                )
                request = registry.UpdateModelVersionRequest(version=version)
                request.update_mask.paths.append("declared_memory")
                fleet.registry.UpdateModelVersion(request, timeout=10)


def _evict(residency: ControllerServiceStub, names: list[str], touched: set[str]) -> None:
    """Afterwards the last one is resident nowhere."""
    for name in names:
        if name in touched:
            residency.EvictModel(controller.EvictModelRequest(name=f"models/{name}"), timeout=60)
    wanted = controller.ListReplicasRequest(model=f"models/{names[-1]}")
    assert not residency.ListReplicas(wanted, timeout=10).replicas
