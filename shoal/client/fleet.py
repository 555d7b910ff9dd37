"""Operations on residency and servers, at the Controller, and on routes, at the Router."""

import time
from typing import Final

from shoal import names
from shoal.client import messages, resources
from shoal.client.errors import FailedPrecondition, InvalidArgument, NotFound
from shoal.client.operations import Call, Operation, Pause
from shoal.client.pages import all_pages
from shoal.client.resolve import Version, resource_name
from shoal.controller.v1 import controller_service_pb2 as controller
from shoal.router.v1 import router_service_pb2 as router

LOADING: Final = 300.0  # seconds: large models take minutes

_POLL: Final = 0.02  # seconds


def load(
    model: str, version: Version = "", *, timeout: float | None = LOADING
) -> Operation[resources.Replica]:
    """Load a version now, rather than with the first request for it.

    Args:
        model: The model's name.
        version: A version or an alias; "" for the default version.
        timeout: Seconds to wait until it is READY. None means the client's own.

    Returns:
        A replica that is READY.

    Raises:
        FailedPrecondition: The load failed.
        CallFailed: The call was refused for another reason, or nobody answered.
    """
    request = controller.LoadModelRequest(name=(yield from resource_name(model, version)))
    reply = yield Call("controller", "LoadModel", request, timeout)
    return messages.replica(reply.replica)


def evict(
    model: str, version: Version = "", *, timeout: float | None = LOADING
) -> Operation[tuple[str, ...]]:
    """Unload a version, or all versions of a model, from every server.

    Requests in flight are answered first. A later request loads it again.

    Args:
        model: The model's name.
        version: A version or an alias; "" for all versions.
        timeout: Seconds to wait until it is unloaded. None means the client's own.

    Returns:
        The names of the servers that it was unloaded from, one for each replica.

    Raises:
        FailedPrecondition: It is pinned, or an ensemble that uses it holds it.
        CallFailed: The call was refused for another reason, or nobody answered.
    """
    request = controller.EvictModelRequest(name=(yield from resource_name(model, version)))
    reply = yield Call("controller", "EvictModel", request, timeout)
    return tuple(name.split("/")[1] for name in reply.evicted)


def pin(
    model: str, version: Version = "", *, timeout: float | None = LOADING
) -> Operation[resources.Replica]:
    """Load a version, and keep it in memory until it is unpinned.

    Args:
        model: The model's name.
        version: A version or an alias; "" for the default version.
        timeout: Seconds to wait until it is READY. None means the client's own.

    Returns:
        A replica that is READY.

    Raises:
        FailedPrecondition: The load failed.
        CallFailed: The call was refused for another reason, or nobody answered.
    """
    request = controller.PinModelRequest(name=(yield from resource_name(model, version)))
    reply = yield Call("controller", "PinModel", request, timeout)
    return messages.replica(reply.replica)


def unpin(model: str, version: Version = "", *, timeout: float | None = None) -> Operation[None]:
    """Allow a pinned version to be evicted again. It stays in memory until room is needed.

    Args:
        model: The model's name.
        version: A version or an alias; "" for the default version.
        timeout: Seconds for the call. None means the client's own.

    Raises:
        CallFailed: The call was refused, or nobody answered.
    """
    request = controller.UnpinModelRequest(name=(yield from resource_name(model, version)))
    yield Call("controller", "UnpinModel", request, timeout)


def servers(*, timeout: float | None = None) -> Operation[list[resources.Server]]:
    """Return all servers.

    Args:
        timeout: Seconds for each page of the list. None means the client's own.

    Raises:
        CallFailed: The call was refused, or nobody answered.
    """
    request = controller.ListServersRequest()
    found = yield from all_pages("controller", "ListServers", request, timeout)
    return [messages.server(one) for page in found for one in page.servers]


def replicas(
    model: str = "", version: Version = "", *, timeout: float | None = None
) -> Operation[list[resources.Replica]]:
    """Return replicas, whatever their state.

    Args:
        model: The model's name; "" for the replicas of all models.
        version: A version or an alias; "" for all versions.
        timeout: Seconds for each page of the list. None means the client's own.

    Raises:
        CallFailed: The call was refused, or nobody answered.
    """
    name = (yield from resource_name(model, version)) if model else ""
    request = controller.ListReplicasRequest(model=name)
    found = yield from all_pages("controller", "ListReplicas", request, timeout)
    return [messages.replica(one) for page in found for one in page.replicas]


def drain(
    server: str, *, restart: bool = False, timeout: float | None = None
) -> Operation[resources.Server]:
    """Drain a server: it is given no new models, and its replicas leave.

    A model in use is loaded elsewhere first where there is room, and requests in flight are
    answered.

    Args:
        server: The server's name.
        restart: Whether the server is to be restarted once it is empty.
        timeout: Seconds for the call, which does not wait for the drain. None means the client's
            own.

    Returns:
        The server, in state DRAINING.

    Raises:
        NotFound: There is no such server.
        CallFailed: The call was refused for another reason, or nobody answered.
    """
    request = controller.DrainServerRequest(name=names.server_name(server), restart=restart)
    reply = yield Call("controller", "DrainServer", request, timeout)
    return messages.server(reply.server)


def undrain(server: str, *, timeout: float | None = None) -> Operation[resources.Server]:
    """Undo a drain: the server can be given models again.

    Args:
        server: The server's name.
        timeout: Seconds for the call. None means the client's own.

    Returns:
        The server after the change.

    Raises:
        NotFound: There is no such server.
        CallFailed: The call was refused for another reason, or nobody answered.
    """
    request = controller.UndrainServerRequest(name=names.server_name(server))
    reply = yield Call("controller", "UndrainServer", request, timeout)
    return messages.server(reply.server)


def events(
    model: str = "",
    version: Version = "",
    *,
    server: str = "",
    limit: int = 100,
    timeout: float | None = None,
) -> Operation[list[resources.Event]]:
    """Return the latest events, the newest first.

    Args:
        model: The name of the model that the events are about; "" for all models.
        version: A version or an alias; "" for all versions.
        server: The name of the server that the events are about. Overrides `model`.
        limit: The largest number of events, from 1 to 1000.
        timeout: Seconds for the call. None means the client's own.

    Raises:
        CallFailed: The call was refused, or nobody answered.
    """
    about = (yield from resource_name(model, version)) if model else ""
    if server:
        about = names.server_name(server)
    request = controller.ListEventsRequest(about=about, page_size=limit)
    reply = yield Call("controller", "ListEvents", request, timeout)
    return [messages.event(one) for one in reply.events]


# --- explanations ---------------------------------------------------------------------------------


def explain(
    model: str, version: Version = "", *, evictions: int = 5, timeout: float | None = None
) -> Operation[resources.Explanation]:
    """Explain what would happen to a request now.

    Args:
        model: The model's name.
        version: A version or an alias; "" for the model's own choice.
        evictions: The largest number of past evictions to return for each version.
        timeout: Seconds for each of several calls. None means the client's own.

    Returns:
        Where the request would go, and for each version that it could go to, why that version is in
        memory, is not, or was evicted.

    Raises:
        CallFailed: A call was refused, or nobody answered.
    """
    route = yield from _route(model, version, timeout)
    arms = tuple(map(messages.route_arm, route.arms))
    found = []
    for name in dict.fromkeys(names.version_name(arm.model, arm.version) for arm in arms):
        found.append((yield from _explained(name, evictions, timeout)))
    return resources.Explanation(tuple(route.steps), arms, tuple(found))


def wait_for_route(
    model: str, version: Version = "", *, answers: int | None, within: float = 5.0
) -> Operation[None]:
    """Wait until the Router follows a change that was made at the Registry.

    Changes reach the Router through the Controller, some milliseconds later.

    Args:
        model: The model's name.
        version: The version or alias that requests name; "" for none.
        answers: The version that must answer all such requests; None if none may answer.
        within: Seconds to wait.

    Raises:
        TimeoutError: The Router does not follow the change within that time.
        CallFailed: The call was refused, or nobody answered.
    """
    deadline = time.monotonic() + within
    wanted = [] if answers is None else [answers]
    while (yield from _answering(model, version, within)) != wanted:
        if time.monotonic() >= deadline:
            raise TimeoutError(f"the Router does not follow the change within {within} s")
        yield Pause(_POLL)


def _answering(model: str, version: Version, timeout: float) -> Operation[list[int]]:
    try:
        return [arm.version for arm in (yield from _route(model, version, timeout)).arms]
    except (NotFound, FailedPrecondition):
        return []
    except InvalidArgument as error:
        if error.reason != "VERSION_NOT_A_NUMBER":
            raise
        return []  # an alias that is not there


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
    return messages.explanation(name, stays, absent, evicted)
