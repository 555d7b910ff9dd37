"""One call of Triton's protocol to all servers, by way of the Controller, which has their key."""

from collections.abc import Iterable
from typing import NamedTuple

import grpc

from services.router.call import RefusedByServers
from services.router.control.calls import ControllerCalls
from services.router.core.errors import NoServerAnswers, ServersDisagree
from shoal.controller.v1 import controller_service_pb2 as wire

_CODES = {code.value[0]: code for code in grpc.StatusCode}
_UNAVAILABLE = grpc.StatusCode.UNAVAILABLE.value[0]


class ServerAnswer(NamedTuple):
    """`code`: of gRPC, 0 for OK. `response`: serialized."""

    server: str
    code: int
    text: str
    response: bytes

    @property
    def taken(self) -> bool:
        return not self.code

    @property
    def reached(self) -> bool:
        """Whether it is the server's own."""
        return self.code != _UNAVAILABLE


class ServerCalls:
    def __init__(self, calls: ControllerCalls) -> None:
        self._calls = calls

    async def ask(
        self,
        call: wire.ServerCall.ValueType,
        request: bytes,
        deadline: float | None,
        servers: Iterable[str] = (),
    ) -> list[ServerAnswer]:
        """Every server's answer. `servers`: ids, empty for all. Raises Rejected, NoController."""
        message = wire.CallServersRequest(call=call, request=request, servers=servers)
        reply = await self._calls.ask("CallServers", message, deadline)
        return [ServerAnswer(a.server, a.code, a.text, a.response) for a in reply.answers]


def readings(call: str, answers: list[ServerAnswer]) -> list[bytes]:
    """What the servers say that can be reached. Raises RefusedByServers, NoServerAnswers."""
    taken = [answer.response for answer in answers if answer.taken]
    if not taken:
        _refuse(call, answers)
    return taken


def updates(call: str, answers: list[ServerAnswer]) -> list[bytes]:
    """Return what all servers say. Raises RefusedByServers where all of them refuse with the same
    words, else ServersDisagree, which names the first that did not take it, or NoServerAnswers."""
    failed = [answer for answer in answers if not answer.taken]
    taken = [answer for answer in answers if answer.taken]
    if not taken:
        _refuse(call, answers)
    if failed:
        raise ServersDisagree(
            call=call,
            server=failed[0].server,
            cause=failed[0].text,
            done=", ".join(answer.server for answer in taken),
        )
    return [answer.response for answer in taken]


def _refuse(call: str, answers: list[ServerAnswer]) -> None:
    """Nobody took it."""
    spoken = [answer for answer in answers if answer.reached]
    if spoken:
        raise RefusedByServers(_CODES[spoken[0].code], spoken[0].text)
    causes = ", ".join(f"{answer.server}: {answer.text}" for answer in answers)
    raise NoServerAnswers(call=call, causes=causes or "none is configured", retry_after=1.0)
