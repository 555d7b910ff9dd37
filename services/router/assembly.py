"""Builds the Router's object graph."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from services.common import telemetry
from services.common.caller import CallerPolicy
from services.common.memory import total_memory
from services.router.admission.admission import Admission
from services.router.api.administration import Administration
from services.router.api.inference import InferenceService
from services.router.api.metadata import Metadata
from services.router.call import Answer
from services.router.control.calls import ControllerCalls
from services.router.control.model_info import ModelInfo
from services.router.control.placement_watch import PlacementWatch
from services.router.control.residents import ResidencyClient
from services.router.control.servers import ServerCalls
from services.router.control.table_file import TableFile
from services.router.core.admission.memory import MemoryBudget
from services.router.core.cancellation import Cancellation
from services.router.core.routing.routes import Replica
from services.router.core.routing.table import Table
from services.router.memory.lent import RegionLender
from services.router.memory.regions import SharedMemory
from services.router.servers.cancellation import Cancellations
from services.router.servers.channels import ServerChannels
from services.router.settings import LaneSettings, Settings, tenant_limits
from services.router.streams.call import StreamCalls
from services.router.streams.stream import Streams
from services.router.telemetry.statistics import Statistics
from services.router.unary.forward import Forwarder
from services.router.unary.inference import UnaryInference

if TYPE_CHECKING:
    from services.router.lane.lane import Lane


@dataclass(frozen=True, slots=True)
class Router:
    """The parts that answer requests, without the ports on which requests arrive."""

    version: str
    callers: CallerPolicy
    watch: PlacementWatch
    controller: ResidencyClient
    channels: ServerChannels
    cancellations: Cancellations
    forwarder: Forwarder
    statistics: Statistics
    admission: Admission
    inference: UnaryInference
    streams: Streams
    #: None if shared memory is switched off.
    memory: SharedMemory | None
    #: The answer to each method of inference.GRPCInferenceService, by method name, except for
    #: inference itself.
    answers: Mapping[str, Answer]
    service: InferenceService
    #: None if there is no proxy in front.
    lane: "Lane | None" = None


@asynccontextmanager
async def assembled(
    settings: Settings,
    controllers: Mapping[str, Any],
    *,
    name: str,
    table_file: TableFile | None = None,
    stop: asyncio.Event | None = None,
) -> AsyncIterator[Router]:
    """Build a Router, and release what it holds on exit. It follows no Controller until its `watch`
    is run.

    `controllers` maps addresses to stubs of ControllerService. `name` identifies this process and
    is new at every start. `table_file` is told of every change to the table. It is not ready any
    more once `stop` is set."""
    async with AsyncExitStack() as stack:
        callers = CallerPolicy(settings.trusted_proxies, behind_lane=settings.lane is not None)
        watch = PlacementWatch(controllers, name, Table(), table_file)
        controller = ResidencyClient(watch, settings.controller_patience)
        stack.callback(controller.close)
        channels, stream_channels = ServerChannels(), ServerChannels()
        stack.push_async_callback(channels.close)
        stack.push_async_callback(stream_channels.close)
        cancellations = Cancellations(channels, Cancellation(settings.cancellation))
        stack.push_async_callback(cancellations.close)
        forwarder = Forwarder(
            watch, controller, channels, cancellations, hedge_after=settings.hedge_after
        )
        stack.push_async_callback(forwarder.close)
        statistics = Statistics()
        info = ModelInfo(controller)
        admission = Admission(
            watch.table,
            tenant_limits(settings.tenant_limits),
            settings.bounds,
            settings.in_flight_limits,
            MemoryBudget(settings.held_bytes(total_memory())),
        )
        watch.count_waiting(admission.waiting)
        calls = ControllerCalls(watch)
        servers = ServerCalls(calls)
        answers = dict(Administration(watch, calls, servers).answers())
        memory = None
        if settings.shared_memory:
            memory = SharedMemory(
                watch,
                servers,
                callers,
                router=str(settings.grpc_port),
                shares_port=settings.worker is not None,
            )
            stack.push_async_callback(memory.close)
            answers |= memory.answers()
        shoal = version("shoal")
        stop = stop or asyncio.Event()
        answers |= Metadata(
            watch,
            info,
            name=settings.server_name,
            version=shoal,
            ends=stop.is_set,
            others=answers,
        ).answers()
        inference = UnaryInference(
            watch,
            forwarder,
            statistics,
            info,
            admission,
            max_message=settings.max_message_bytes,
            max_metadata=settings.max_header_bytes,
            lender=RegionLender(memory) if memory is not None else None,
        )
        stack.push_async_callback(inference.close)
        stream_calls = StreamCalls(
            watch,
            controller,
            stream_channels,
            cancellations,
            forwarder.pick,
            forwarder.repeats,
            forwarder.budget,
        )
        stack.push_async_callback(stream_calls.close)
        streams = Streams(
            watch, stream_calls, inference, statistics, max_message=settings.max_message_bytes
        )
        lane = None
        if settings.lane is not None and not settings.worker:  # one worker speaks for all
            lane = _lane(settings, settings.lane, watch, cancellations, statistics)
        yield Router(
            version=shoal,
            callers=callers,
            watch=watch,
            controller=controller,
            channels=channels,
            cancellations=cancellations,
            forwarder=forwarder,
            statistics=statistics,
            admission=admission,
            inference=inference,
            streams=streams,
            memory=memory,
            answers=answers,
            service=InferenceService(inference, streams, callers, answers),
            lane=lane,
        )


def _lane(
    settings: Settings,
    at: LaneSettings,
    watch: PlacementWatch,
    cancellations: Cancellations,
    statistics: Statistics,
) -> "Lane":
    # These import Envoy's protos, which need not be installed without a lane.
    from services.router.lane.edge import GRPC, HTTP
    from services.router.lane.journal import Journal
    from services.router.lane.lane import Lane
    from services.router.lane.resources import Front

    def ended(replica: Replica, seconds: float | None, failed: bool) -> None:
        watch.in_use.end(replica)
        if seconds is not None:
            statistics.add(replica.target, seconds, failed=failed, cold=False, lane=True)

    front = Front(
        grpc=at.grpc,
        http=at.http,
        probes={GRPC: at.grpc_probe, HTTP: at.http_probe},
        router={
            GRPC: f"{settings.own_host}:{settings.grpc_port}",
            HTTP: f"{settings.own_host}:{settings.http_port}",
        },
        journal=str(at.journal),
        trace_ratio=telemetry.root_ratio(),
        router_workers=settings.workers,
        max_message=settings.max_received_bytes,
        max_body=settings.max_message_bytes,
        max_json=settings.max_json_bytes,
        limits=settings.limits,
    )
    journal = Journal(at.journal, watch.in_use.begin, ended)
    return Lane(watch, front, settings.lane_rules, journal, cancellations)
