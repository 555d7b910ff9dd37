"""The processes of a stack: their commands, environments and ports, and the order of stopping."""

import json
import secrets
import shutil
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

from services.common import programs
from services.embedded import fleet, lane, leftovers, machine, readiness, tracing
from services.embedded.backends import assemble
from services.embedded.completing import Completing
from services.embedded.endpoints import CONTROLLER, Endpoints, claimed
from services.embedded.errors import BadSettings, TritonUnavailable
from services.embedded.part import Part
from services.embedded.ports import LOOPBACK, Claims
from services.embedded.runs import Run
from services.embedded.settings import StackSettings
from services.embedded.triton_options import shows_headers
from services.embedded.tritonserver import ADMIN_METADATA, TritonSpec, command, environment

COLLECTOR: Final = "collector"
COMPLETER: Final = "completer"
REGISTRY: Final = "registry"
ROUTER: Final = "router"
LANE: Final = "lane"
_SERVICES: Final = (COLLECTOR, REGISTRY, CONTROLLER, ROUTER)

SELFCHECK_MODEL: Final = "shoal-selfcheck"

# Seconds between SIGTERM and SIGKILL. The Router first answers what it has begun.
_STOP_WITHIN: Final = {ROUTER: 10.0, LANE: 4.0, CONTROLLER: 6.0, REGISTRY: 6.0, COLLECTOR: 4.0}
# Seconds for which the Router is not ready before it refuses requests.
_DRAIN: Final = 0.5
_TRITON_EXIT: Final = 5  # seconds that Triton itself gives requests in flight
_TRITON_STOP_WITHIN: Final = 12.0


@dataclass(frozen=True)
class Plan:
    """All that is decided before anything is started."""

    settings: StackSettings
    run: Run
    data: Path
    budget: int  # bytes of each server
    endpoints: Endpoints
    tracing: tracing.Tracing
    waves: tuple[tuple[Part, ...], ...]
    completing: Completing
    notes: list[str]  # for people

    @property
    def parts(self) -> list[Part]:
        return [part for wave in self.waves for part in wave]


def plan(
    settings: StackSettings, run: Run, data: Path, claims: Claims, base: Mapping[str, str]
) -> Plan:
    """Plan a stack, claim its ports and make its folders. `base` is the environment to start from.

    Raises CannotStart.
    """
    python = machine.triton_python(settings.triton_venv)
    envoy = lane.wanted(settings.lane)
    endpoints = claimed(
        settings,
        claims,
        collector=tracing.wants_collector(settings, base),
        laned=envoy is not None,
    )
    traces = tracing.plan(settings, base, endpoints.collector_http)
    budget = settings.memory_budget or machine.default_budget(settings.servers)
    for folder in ("registry", "staging", "router", "logs"):
        (data / folder).mkdir(parents=True, exist_ok=True)
    secret = secrets.token_urlsafe(32)
    common = _Common(run, data, base, traces)
    tritons = _tritons(common, settings, endpoints, python, secret)
    completing = _completing(common, settings, claims, python)
    waves = (
        (_router(common, settings, endpoints),),
        (_lane(common, envoy, endpoints),) if envoy is not None else (),
        tuple(
            _controller(common, settings, endpoints, budget, secret, name)
            for name in endpoints.controllers
        ),
        (_registry(common, settings, endpoints), *tritons),  # by then nobody uses these any more
        (_collector(common, endpoints),) if endpoints.collector_http else (),
    )
    notes = [
        *machine.notes(python),
        *machine.budget_notes(budget, settings.servers),
        *tracing.notes(settings, base, traces),
    ]
    return Plan(settings, run, data, budget, endpoints, traces, waves, completing, notes)


@dataclass(frozen=True)
class _Common:
    run: Run
    data: Path
    base: Mapping[str, str]
    traces: tracing.Tracing

    def log(self, name: str) -> Path:
        return self.data / "logs" / f"{name}.log"

    def marked(self, name: str, variables: Mapping[str, str]) -> dict[str, str]:
        """Add the part's marks, and a folder for temporary files that is removed with the run."""
        folder = self.run.folder / "tmp" / name
        folder.mkdir(parents=True, exist_ok=True)
        return {**variables, **leftovers.marks(self.run.name, name), "TMPDIR": str(folder)}

    def service(
        self, name: str, settings: Mapping[str, object], part: str = ""
    ) -> tuple[tuple[str, ...], dict[str, str]]:
        """Return command and environment. `part` is the part's name if it is not the service's.

        A service sees no settings but its own.
        """
        module = f"services.embedded.{name}" if name == COLLECTOR else f"services.{name}"
        others = tuple(f"SHOAL_{other.upper()}_" for other in _SERVICES if other != name)
        kept = {key: value for key, value in self.base.items() if not key.startswith(others)}
        own = {
            key: value if isinstance(value, str) else json.dumps(value)
            for key, value in settings.items()
        }
        variables = {**programs.environment(kept), **own}
        return programs.module(module), self.marked(part or name, variables)


def _collector(common: _Common, endpoints: Endpoints) -> Part:
    assert endpoints.collector_grpc
    assert endpoints.collector_http
    port = _port(endpoints.collector_http)
    words, variables = common.service(
        COLLECTOR,
        {
            "SHOAL_OTLP_HOST": LOOPBACK,
            "SHOAL_OTLP_GRPC_PORT": _port(endpoints.collector_grpc),
            "SHOAL_OTLP_HTTP_PORT": port,
            "OTEL_SDK_DISABLED": "true",  # it would send to itself
        },
    )
    ready = partial(readiness.http_ok, LOOPBACK, port, "/healthz")
    return _service_part(common, COLLECTOR, words, variables, ready)


def _registry(common: _Common, settings: StackSettings, endpoints: Endpoints) -> Part:
    words, variables = common.service(
        REGISTRY,
        {
            **common.traces.variables,
            "SHOAL_REGISTRY_PORT": _port(endpoints.registry),
            "SHOAL_REGISTRY_METRICS_PORT": _port(endpoints.registry_metrics),
            "SHOAL_REGISTRY_DATA_DIR": str(common.data / "registry"),
            "SHOAL_REGISTRY_STAGING_DIR": str(common.data / "staging"),
            "SHOAL_REGISTRY_REPOSITORIES": [str(folder) for folder in settings.repository],
            **({"SHOAL_REGISTRY_POLL_SECONDS": settings.poll} if settings.poll else {}),
        },
    )
    ready = partial(readiness.grpc_serving, endpoints.registry)
    return _service_part(common, REGISTRY, words, variables, ready)


def _controller(
    common: _Common,
    settings: StackSettings,
    endpoints: Endpoints,
    budget: int,
    secret: str,
    part: str,
) -> Part:
    # The Router has all requests sent over gRPC, by which alone models see headers.
    http = {} if shows_headers(settings.triton_option) else endpoints.triton_http
    servers = [
        {
            "id": server,
            "address": address,
            "memory_budget": {"ram": budget},
            "max_models": settings.max_models,
            "local": True,
            **({"http_address": http[server]} if server in http else {}),
            "auto_complete": False,
        }
        for server, address in endpoints.tritons.items()
    ]
    words, variables = common.service(
        CONTROLLER,
        {
            **common.traces.variables,
            "SHOAL_CONTROLLER_PORT": _port(endpoints.controllers[part]),
            "SHOAL_CONTROLLER_METRICS_PORT": _port(endpoints.controllers_metrics[part]),
            "SHOAL_CONTROLLER_REGISTRY": endpoints.registry,
            "SHOAL_CONTROLLER_HOLDER": part,
            "SHOAL_CONTROLLER_SERVERS": servers,
            "SHOAL_CONTROLLER_TRITON_ADMIN_KEY": secret,
            "SHOAL_CONTROLLER_SELFCHECK_MODEL": SELFCHECK_MODEL,
        },
        part,
    )
    ready = partial(
        readiness.one_of_several,
        endpoints.controllers[part],
        [partial(fleet.controller_ready, address) for address in endpoints.controllers.values()],
    )
    return _service_part(common, CONTROLLER, words, variables, ready, part)


def _router(common: _Common, settings: StackSettings, endpoints: Endpoints) -> Part:
    drain = common.base.get("SHOAL_ROUTER_DRAIN", str(_DRAIN))
    words, variables = common.service(
        ROUTER,
        {
            **shared_memory(common.base, settings),
            **common.traces.variables,
            "SHOAL_ROUTER_DRAIN": drain,
            "SHOAL_ROUTER_GRPC_PORT": _port(endpoints.router_own_grpc),
            "SHOAL_ROUTER_HTTP_PORT": _port(endpoints.router_own_http),
            **_lane_setting(common, endpoints, settings),
            "SHOAL_ROUTER_CONTROLLER": ",".join(endpoints.controllers.values()),
            "SHOAL_ROUTER_STATE_DIR": str(common.data / "router"),
            "SHOAL_ROUTER_WORKERS": str(settings.router_workers),
        },
    )
    ready = partial(readiness.grpc_serving, endpoints.router_own_grpc)
    part = _service_part(common, ROUTER, words, variables, ready)
    return replace(part, stop_within=part.stop_within + _seconds(drain))


def _lane_setting(
    common: _Common, endpoints: Endpoints, settings: StackSettings
) -> dict[str, object]:
    """Return the setting that tells the Router of the proxy in front, if there is one."""
    if not endpoints.lane_discovery:
        return {}
    host = common.base.get("SHOAL_ROUTER_HOST") or LOOPBACK
    host = f"[{host}]" if ":" in host else host
    setting = {
        "discovery": endpoints.lane_discovery,
        "grpc": f"{host}:{_port(endpoints.router_grpc)}",
        "http": f"{host}:{_port(endpoints.router_http)}",
        "grpc_probe": endpoints.lane_grpc_probe,
        "http_probe": endpoints.lane_http_probe,
        "journal": str(common.run.folder / "lane.journal"),
        "any_release": settings.lane == "on",
    }
    return {"SHOAL_ROUTER_LANE": setting}


def _lane(common: _Common, envoy: Path, endpoints: Endpoints) -> Part:
    kept = {key: value for key, value in common.base.items() if not key.startswith("SHOAL_")}
    return Part(
        name=LANE,
        command=lane.command(
            envoy, common.run.folder, endpoints.lane_discovery, lane.heap(common.base)
        ),
        environment=common.marked(LANE, kept),
        log=common.log(LANE),
        ready=partial(readiness.grpc_serving, endpoints.router_grpc),
        stop_within=_STOP_WITHIN[LANE],
        leftovers=partial(_clear, common.run, LANE, None),
    )


def shared_memory(base: Mapping[str, str], settings: StackSettings) -> dict[str, str]:
    """Return the setting that turns shared memory on, unless another one decides otherwise."""
    others = (
        "SHOAL_ROUTER_SHARED_MEMORY",
        "SHOAL_ROUTER_HEDGE_AFTER",
        "SHOAL_ROUTER_HOST",
    )
    if settings.router_workers > 1 or any(base.get(other) for other in others):
        return {}
    return {"SHOAL_ROUTER_SHARED_MEMORY": "true"}


def _seconds(text: str) -> float:
    """Return a number of seconds, 0 for what the Router will refuse."""
    try:
        return max(0.0, float(text))
    except ValueError:
        return 0.0


def _service_part(
    common: _Common,
    name: str,
    words: tuple[str, ...],
    variables: Mapping[str, str],
    ready: Callable[[], Awaitable[None]],
    part: str = "",
) -> Part:
    part = part or name
    return Part(
        name=part,
        command=words,
        environment=variables,
        log=common.log(part),
        ready=ready,
        stop_within=_STOP_WITHIN[name],
        leftovers=partial(_clear, common.run, part, None),
    )


def _tritons(
    common: _Common, settings: StackSettings, endpoints: Endpoints, python: Path, secret: str
) -> tuple[Part, ...]:
    files = machine.triton_files()
    # Copied, because Python writes the models' caches beside them.
    selfcheck = common.data / "selfcheck"
    shutil.copytree(files / "selfcheck", selfcheck, dirs_exist_ok=True)
    try:
        specs = [
            TritonSpec(
                id=server,
                grpc_port=_port(address),
                metrics_port=_port(endpoints.triton_metrics[server]),
                http_port=_port(http) if (http := endpoints.triton_http.get(server)) else None,
                repositories=(common.data / "staging", selfcheck),
                backend_directory=common.data / "backends",
                python=python,
                shm_prefix=f"{common.run.name}-{server}-",
                admin_secret=secret,
                exit_timeout_s=_TRITON_EXIT,
                trace_url=common.traces.triton_url,
                extra_args=settings.triton_option,
            )
            for server, address in endpoints.tritons.items()
        ]
    except ValueError as error:
        raise BadSettings(
            f"{error}: choose a --data folder whose whole path has only letters, digits and "
            "the characters _ . / + @ % = , -"
        ) from error
    try:
        assemble(specs[0].site_packages, files / "backends", specs[0].backend_directory)
    except FileNotFoundError as error:
        raise TritonUnavailable(
            f"{error}: remove {python.parents[1]} and {machine.how_to_set_up(python.parents[1])}."
        ) from error
    return tuple(_triton(common, spec, endpoints.tritons[spec.id]) for spec in specs)


def _completing(
    common: _Common, settings: StackSettings, claims: Claims, python: Path
) -> Completing:
    repository = common.data / COMPLETER
    shutil.rmtree(repository, ignore_errors=True)  # what a crash has left there
    repository.mkdir()
    grpc_port, metrics_port = claims.take(0), claims.take(0)
    spec = TritonSpec(
        id=COMPLETER,
        grpc_port=grpc_port,
        metrics_port=metrics_port,
        repositories=(repository,),
        backend_directory=common.data / "backends",
        python=python,
        shm_prefix=f"{common.run.name}-{COMPLETER}-",
        admin_secret=secrets.token_urlsafe(32),
        load_threads=1,
        exit_timeout_s=_TRITON_EXIT,
        auto_complete=True,
        extra_args=settings.triton_option,
    )
    address = f"{LOOPBACK}:{grpc_port}"
    metadata = ((ADMIN_METADATA, spec.admin_secret),)
    part = _triton(common, spec, address)
    return Completing(part, address, metadata, common.data / "staging", repository)


def _triton(common: _Common, spec: TritonSpec, address: str) -> Part:
    return Part(
        name=spec.id,
        command=tuple(command(spec)),
        environment=common.marked(spec.id, environment(spec, common.base)),
        log=common.log(spec.id),
        ready=partial(readiness.triton_live, address),
        stop_within=_TRITON_STOP_WITHIN,
        leftovers=partial(_clear, common.run, spec.id, spec.shm_prefix),
        advice=machine.advice,
    )


def _clear(run: Run, part: str, shm_prefix: str | None, pid: int) -> None:
    """Remove what the ended process `pid` of a part has left behind."""
    leftovers.end(leftovers.processes(run.name, part))
    leftovers.reap_session(pid)
    if shm_prefix is not None:
        leftovers.remove_shared_memory(shm_prefix)
        leftovers.remove_backend_folders(run.started)


def _port(address: str) -> int:
    return int(address.rpartition(":")[2])
