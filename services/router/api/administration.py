"""Administrative calls of Triton's protocol, answered for a whole fleet."""

import asyncio
from collections.abc import Mapping
from typing import Any, Final

from tritonclient.grpc import service_pb2

from services.common.errors import InvalidField, LoadFailed, NotServable, VersionNotFound
from services.common.status import error_info
from services.router.api.common_settings import common_log, common_trace
from services.router.call import Answer, Call
from services.router.control.answers import Rejected
from services.router.control.calls import ControllerCalls
from services.router.control.placement_watch import PlacementWatch
from services.router.control.servers import ServerCalls, all_accepted, any_accepted
from services.router.core.errors import (
    LoadParameter,
    LoadRefused,
    ModelNotAvailable,
    NotInRepository,
    RepositoryNamed,
    VersionNotAvailable,
)
from services.router.core.routing.routes import Target, resolve, shares
from services.router.core.routing.table import Revision
from services.router.waiting import within
from shoal.controller.v1 import controller_service_pb2 as wire
from shoal.names import is_model_name, model_name, version_name

UNLOAD_DEPENDENTS: Final = "unload_dependents"
FOLLOW_SECONDS: Final = 5.0  # the table follows the Controller's answer within milliseconds


class Administration:
    """Answers administrative calls. The methods take and return messages of
    inference.GRPCInferenceService. All raise Rejected and NoController besides the errors that they
    name."""

    def __init__(self, watch: PlacementWatch, calls: ControllerCalls, servers: ServerCalls) -> None:
        self._watch = watch
        self._table_changed = asyncio.Event()
        watch.listen(lambda _: self._table_changed.set())
        self._calls = calls
        self._servers = servers

    def answers(self) -> Mapping[str, Answer]:
        """Return the answer to each method, by name."""
        return {
            "ModelStatistics": self.model_statistics,
            "RepositoryModelLoad": self.load,
            "RepositoryModelUnload": self.unload,
            "TraceSetting": self.trace_setting,
            "LogSettings": self.log_settings,
        }

    async def model_statistics(self, request: Any, call: Call) -> Any:
        """Return statistics of all servers, kept across reloads: see
        ControllerService/GetModelStatistics. Raises ModelNotAvailable, VersionNotAvailable,
        InvalidVersion, VersionNotANumber."""
        number = self._version(request.name, request.version) if request.name else 0
        wanted = wire.GetModelStatisticsRequest(model=request.name, version=number)
        reply = await self._calls.ask("GetModelStatistics", wanted, call.deadline)
        return service_pb2.ModelStatisticsResponse.FromString(reply.statistics)

    def _version(self, model: str, version: str) -> int:
        """Return the number of the version, 0 if none is named."""
        routes = self._watch.table.routes
        route = routes.get(model)
        if route is None or not route.versions:
            raise ModelNotAvailable(model=model)
        if not version:
            return 0
        try:
            return resolve(routes, model, version, 0.0).version
        except VersionNotFound as unknown:
            listed = ", ".join(map(str, sorted(route.versions)))
            raise VersionNotAvailable(model=model, version=version, versions=listed) from unknown

    # --- RepositoryModelLoad, RepositoryModelUnload -----------------------------------------------

    async def load(self, request: Any, call: Call) -> Any:
        """Load a model as its folder is now. Returns when all versions that answer its requests are
        READY: its default version, or each arm of its traffic policy.

        Raises AdminRequired, RepositoryNamed, LoadParameter, NotInRepository, LoadRefused,
        NoApprovedVersion."""
        call.caller.require_admin("RepositoryModelLoad")
        refuse_named(request.repository_name)
        for parameter in request.parameters:
            raise LoadParameter(parameter=parameter[:64], model=request.model_name[:128])
        problem = await self._refresh(request.model_name, call)
        routes = self._watch.table.routes
        if problem or request.model_name not in routes:
            raise NotInRepository(
                model=request.model_name[:128],
                problem=problem
                or "no model of that name is registered or in a repository that was imported: "
                "`shoal register` or `shoal import` adds it.",
            )
        try:
            targets = shares(routes, request.model_name, "")
        except NotServable as error:
            raise _not_in_repository(error.metadata) from error
        for target, _ in targets:
            await self._load(target, call)
        return service_pb2.RepositoryModelLoadResponse()

    async def _refresh(self, model: str, call: Call) -> str:
        """Have a model's folders read again, and wait until the table has what was found there.

        Returns why the model cannot be loaded from there, or ""."""
        if not is_model_name(model):
            return ""
        request = wire.RefreshModelRequest(name=model_name(model))
        reply = await self._calls.ask("RefreshModel", request, call.deadline)
        found = Revision(reply.revision.epoch, reply.revision.number)
        await within(FOLLOW_SECONDS, self._reached(found))
        return str(reply.problem)

    async def _reached(self, revision: Revision) -> None:
        while self._watch.table.revision < revision:
            self._table_changed.clear()
            await self._table_changed.wait()

    async def _load(self, target: Target, call: Call) -> str:
        """Load a version and return the server that has it."""
        wanted = wire.LoadModelRequest(name=version_name(*target))
        try:
            reply = await self._calls.ask("LoadModel", wanted, call.deadline)
        except Rejected as rejected:
            info = error_info(tuple(rejected.error.trailing_metadata() or ()))
            details = dict(info.metadata) if info is not None else {}
            if info is not None and info.reason == LoadFailed.reason:
                raise LoadRefused(cause=_in_tritons_words(target, details["cause"])) from rejected
            if info is not None and info.reason == NotServable.reason:
                raise _not_in_repository(details) from rejected
            raise
        return str(reply.replica.name.split("/")[1])  # "servers/{server}/replicas/…"

    async def unload(self, request: Any, call: Call) -> Any:
        """Unload a model. Returns when no version of it is resident any more; the next request for
        it loads it again. Raises AdminRequired, RepositoryNamed, InvalidField."""
        call.caller.require_admin("RepositoryModelUnload")
        refuse_named(request.repository_name)
        parts = request.parameters.get(UNLOAD_DEPENDENTS)
        if parts is not None and parts.WhichOneof("parameter_choice") != "bool_param":
            raise InvalidField(
                field=f"parameter {UNLOAD_DEPENDENTS!r}", problem="a bool_param is expected"
            )
        if request.model_name in self._watch.table.routes:  # Triton ignores unknown names, too
            wanted = wire.EvictModelRequest(
                name=model_name(request.model_name), parts=parts is not None and parts.bool_param
            )
            await self._calls.ask("EvictModel", wanted, call.deadline)
        return service_pb2.RepositoryModelUnloadResponse()

    # --- TraceSetting, LogSettings ----------------------------------------------------------------

    async def trace_setting(self, request: Any, call: Call) -> Any:
        """Read or change the trace settings of all servers, or of a model on the servers that hold
        it. Changing a model's settings makes it resident. A server that restarts begins with its
        own settings.

        Raises AdminRequired, RefusedByServers, ServersDisagree, NoServerAnswers, and what `load`
        raises."""
        call.caller.require_admin("TraceSetting")
        asked = service_pb2.TraceSettingRequest()
        asked.CopyFrom(request)
        servers: tuple[str, ...] = ()
        route = self._watch.table.routes.get(request.model_name)
        if route is not None and route.versions:  # every server refuses an unknown one
            servers = tuple({s for entry in route.versions.values() for s in entry.servers})
            if not servers and request.settings:
                target = resolve(self._watch.table.routes, request.model_name, "", 0.0)
                servers = (await self._load(target, call),)
            elif not servers:
                asked.model_name = ""  # the settings it will begin with
        answers = await self._servers.ask(
            wire.SERVER_CALL_TRACE_SETTING, asked.SerializeToString(), call.deadline, servers
        )
        responses = all_accepted if request.settings else any_accepted
        return common_trace(responses("TraceSetting", answers))

    async def log_settings(self, request: Any, call: Call) -> Any:
        """Read or change the log settings of all servers. A server that restarts begins with its
        own settings. Raises AdminRequired, RefusedByServers, ServersDisagree, NoServerAnswers."""
        call.caller.require_admin("LogSettings")
        answers = await self._servers.ask(
            wire.SERVER_CALL_LOG_SETTINGS, request.SerializeToString(), call.deadline
        )
        responses = all_accepted if request.settings else any_accepted
        return common_log(responses("LogSettings", answers))


def refuse_named(repository: str) -> None:
    """Raises RepositoryNamed, as Triton does, if a repository is named."""
    if repository:
        raise RepositoryNamed(repository=repository[:128])


def _not_in_repository(details: Mapping[str, str]) -> NotInRepository:
    """Return Triton's error for the model that a NotServable has these details of."""
    unit = f"{details['model']}:{details['version']}"
    problem = f"{unit} cannot be served: {details['problem']}"
    return NotInRepository(model=details["model"], problem=problem)


def _in_tritons_words(target: Target, cause: str) -> str:
    """Return what RepositoryModelLoad says about a failed load. `cause` is what the server said, as
    a sentence."""
    if cause.startswith("load failed for model"):
        return cause.removesuffix(".")
    return (
        f"load failed for model '{target.model}': version {target.version} is at UNAVAILABLE "
        f"state: {cause}"
    )
