"""What the Registry has imported, for the output of `shoal up`."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import grpc

from services.common import channels
from shoal.names import parse_version_name
from shoal.registry.v1 import registry_service_pb2 as pb
from shoal.registry.v1 import types_pb2
from shoal.registry.v1.registry_service_pb2_grpc import RegistryServiceStub

WITHIN: Final = 5.0  # seconds
_PAGE: Final = 200  # versions with their configs
_SHOWN: Final = 3  # reasons


@dataclass(frozen=True, slots=True)
class Imported:
    """The number of models that can be served, and why versions and folders cannot.

    `waiting` versions can once a server has completed their configs.
    """

    models: int
    refused: Sequence[str]
    waiting: int = 0

    def lines(self) -> list[str]:
        """Return the summary, with the first reasons."""
        models = f"{self.models} model{'s'[: self.models != 1]} can be served"
        if self.waiting:
            models += (
                f", {self.waiting} of their versions once a Triton has completed their configs"
            )
        if not self.refused:
            return [models]
        more = len(self.refused) - _SHOWN
        return [
            f"{models}, {len(self.refused)} refused:",
            *(f"  {_printable(reason)}" for reason in self.refused[:_SHOWN]),
            *([f"  and {more} more: see `shoal models`"] if more > 0 else []),
        ]


async def imported(address: str) -> Imported | None:
    """Ask the Registry; None if it does not answer in time."""
    try:
        async with asyncio.timeout(WITHIN), channels.control(address) as channel:
            stub: Any = RegistryServiceStub(channel)
            models: set[str] = set()
            refused: list[str] = []
            waiting = 0
            all_versions = pb.ListModelVersionsRequest(parent="models/-", page_size=_PAGE)
            async for page in _pages(stub.ListModelVersions, all_versions):
                for version in page.versions:
                    name = parse_version_name(version.name)
                    assert name is not None, version.name
                    if version.state == types_pb2.VERSION_STATE_INVALID:
                        refused.append(f"{name.model}:{name.version}: {version.invalid_reason}")
                    else:
                        models.add(name.model)
                        waiting += version.state == types_pb2.VERSION_STATE_WAITING
            problems = pb.ListImportProblemsRequest(page_size=_PAGE)
            async for page in _pages(stub.ListImportProblems, problems):
                refused += [f"{one.path}: {one.reason}" for one in page.problems]
    except (TimeoutError, grpc.aio.AioRpcError):
        return None
    return Imported(len(models), refused, waiting)


async def _pages(method: Callable[[Any], Awaitable[Any]], request: Any) -> AsyncIterator[Any]:
    while True:
        page = await method(request)
        yield page
        request.page_token = page.next_page_token
        if not request.page_token:
            return


def _printable(text: str) -> str:
    """Replace control characters: file names and configs must not control the terminal."""
    return "".join(sign if sign.isprintable() else "·" for sign in text)
