"""Where models live and why, as Controller and Router are asked and told.

A `version` is a number or an alias; "" means the model's default version, where nothing else is
said. `timeout`: seconds; None: the client's own. All raise CallFailed.
"""

import time
from typing import Final

from shoal import names
from shoal.client import reading, resources
from shoal.client.errors import FailedPrecondition, NotFound
from shoal.client.lookup import Version, pages, resource
from shoal.client.steps import Call, Operation, Pause
from shoal.controller.v1 import controller_service_pb2 as controller
from shoal.router.v1 import router_service_pb2 as router

LOADING: Final = 300.0  # seconds: large models take minutes

_POLL: Final = 0.02  # seconds


def load(
    model: str, version: Version = "", *, timeout: float | None = LOADING
) -> Operation[resources.Replica]:
    """Makes a version resident now, rather than with the first request for it."""
    request = controller.LoadModelRequest(name=(yield from resource(model, version)))
    reply = yield Call("controller", "LoadModel", request, timeout)
    return reading.replica(reply.replica)


def evict(
    model: str, version: Version = "", *, timeout: float | None = LOADING
) -> Operation[tuple[str, ...]]:
    """Takes a version, or without one all versions of a model, out of memory on every server.

    What is in flight is answered first. Returns the names of the servers that held it.
    """
    request = controller.EvictModelRequest(name=(yield from resource(model, version)))
    reply = yield Call("controller", "EvictModel", request, timeout)
    return tuple(name.split("/")[1] for name in reply.evicted)


def pin(
    model: str, version: Version = "", *, timeout: float | None = LOADING
) -> Operation[resources.Replica]:
    """Loads a version and has it never evicted, until it is unpinned."""
    request = controller.PinModelRequest(name=(yield from resource(model, version)))
    reply = yield Call("controller", "PinModel", request, timeout)
    return reading.replica(reply.replica)


def unpin(model: str, version: Version = "", *, timeout: float | None = None) -> Operation[None]:
    request = controller.UnpinModelRequest(name=(yield from resource(model, version)))
    yield Call("controller", "UnpinModel", request, timeout)


def servers(*, timeout: float | None = None) -> Operation[list[resources.Server]]:
    request = controller.ListServersRequest()
    found = yield from pages("controller", "ListServers", request, timeout)
    return [reading.server(one) for page in found for one in page.servers]


def replicas(
    model: str = "", version: Version = "", *, timeout: float | None = None
) -> Operation[list[resources.Replica]]:
    """Of a version, of all versions of a model, or without a model of everything."""
    name = (yield from resource(model, version)) if model else ""
    request = controller.ListReplicasRequest(model=name)
    found = yield from pages("controller", "ListReplicas", request, timeout)
    return [reading.replica(one) for page in found for one in page.replicas]


def drain(
    server: str, *, restart: bool = False, timeout: float | None = None
) -> Operation[resources.Server]:
    """Gives a server nothing new, and has its replicas leave.

    With `restart`, it is restarted once it is empty.
    """
    request = controller.DrainServerRequest(name=names.server_name(server), restart=restart)
    reply = yield Call("controller", "DrainServer", request, timeout)
    return reading.server(reply.server)


def undrain(server: str, *, timeout: float | None = None) -> Operation[resources.Server]:
    """Takes a drain back."""
    request = controller.UndrainServerRequest(name=names.server_name(server))
    reply = yield Call("controller", "UndrainServer", request, timeout)
    return reading.server(reply.server)


def events(
    model: str = "",
    version: Version = "",
    *,
    server: str = "",
    limit: int = 100,
    timeout: float | None = None,
) -> Operation[list[resources.Event]]:
    """The newest first: of a model or a version, of a server, or of everything."""
    about = (yield from resource(model, version)) if model else ""
    if server:
        about = names.server_name(server)
    request = controller.ListEventsRequest(about=about, page_size=limit)
    reply = yield Call("controller", "ListEvents", request, timeout)
    return [reading.event(one) for one in reply.events]


# --- why ------------------------------------------------------------------------------------------


def explain(
    model: str, version: Version = "", *, evictions: int = 5, timeout: float | None = None
) -> Operation[resources.Explanation]:
    """What would happen to a request now, and why each version that it could go to is in memory, is
    not, or had to leave; of evictions, the newest `evictions`."""
    route = yield from _route(model, version, timeout)
    arms = tuple(
        resources.RouteArm(arm.model, arm.version, arm.share, tuple(map(reading.last, arm.servers)))
        for arm in route.arms
    )
    found = []
    for name in dict.fromkeys(names.version_name(arm.model, arm.version) for arm in arms):
        found.append((yield from _explained(name, evictions, timeout)))
    return resources.Explanation(tuple(route.steps), arms, tuple(found))


def wait_for_route(
    model: str, version: Version = "", *, answers: int | None, within: float = 5.0
) -> Operation[None]:
    """Until requests for `version` are answered by the version `answers` alone, None: by none.

    A change of the catalogue comes to the Router through the Controller, some milliseconds later.
    Raises TimeoutError after `within` seconds.
    """
    deadline = time.monotonic() + within
    wanted = [] if answers is None else [answers]
    while (yield from _answering(model, version, within)) != wanted:
        if time.monotonic() >= deadline:
            raise TimeoutError(f"the Router does not answer by it within {within} s")
        yield Pause(_POLL)


def _answering(model: str, version: Version, timeout: float) -> Operation[list[int]]:
    try:
        return [arm.version for arm in (yield from _route(model, version, timeout)).arms]
    except (NotFound, FailedPrecondition):
        return []


def _route(
    model: str, version: Version, timeout: float | None
) -> Operation[router.ExplainRouteResponse]:
    request = router.ExplainRouteRequest(model=model, version=str(version))
    reply: router.ExplainRouteResponse = yield Call("router", "ExplainRoute", request, timeout)
    return reply


def _explained(
    name: str, evictions: int, timeout: float | None
) -> Operation[resources.VersionExplanation]:
    stays = yield Call(
        "controller", "WhyResident", controller.WhyResidentRequest(name=name), timeout
    )
    absent = yield Call(
        "controller", "WhyNotLoaded", controller.WhyNotLoadedRequest(name=name), timeout
    )
    asked = controller.WhyEvictedRequest(name=name, page_size=evictions)
    evicted = yield Call("controller", "WhyEvicted", asked, timeout)
    return resources.VersionExplanation(
        version=reading.version_name(name),
        reason=absent.reason,
        waiters=absent.waiters,
        turn=absent.turn or None,
        failure=reading.failure(absent.failure) if absent.HasField("failure") else None,
        servers=tuple(map(reading.verdict, absent.servers)),
        stays=tuple(map(reading.stay, stays.replicas)),
        evictions=tuple(map(reading.eviction, evicted.evictions)),
    )
