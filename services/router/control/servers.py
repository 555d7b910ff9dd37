"""Makes a call of Triton's protocol to all servers, through the Controller, which has their key."""

from collections.abc import Iterable
from typing import NamedTuple

import grpc

from services.common.status import CODES
from services.router.call import RefusedByServers
from services.router.control.calls import ControllerCalls
from services.router.core.errors import NoServerAnswers, ServersDisagree
from shoal.controller.v1 import controller_service_pb2 as wire

_UNAVAILABLE = grpc.StatusCode.UNAVAILABLE.value[0]


class ServerAnswer(NamedTuple):
    """A server's answer to a call. `code` is gRPC's, 0 for OK. `response` is serialized."""

    server: str
    code: int
    text: str
    response: bytes

    @property
    def accepted(self) -> bool:
        """Whether the server did as it was asked."""
        return not self.code

    @property
    def reached(self) -> bool:
        """Whether it is the server's own answer."""
        return self.code != _UNAVAILABLE


class ServerCalls:
    """Makes calls to all servers."""

    def __init__(self, calls: ControllerCalls) -> None:
        self._calls = calls

    async def ask(
        self,
        call: wire.ServerCall.ValueType,
        request: bytes,
        deadline: float | None,
        servers: Iterable[str] = (),
    ) -> list[ServerAnswer]:
        """Return every server's answer. `servers` lists ids; if it is empty, all are asked. Raises
        Rejected, NoController."""
        message = wire.CallServersRequest(call=call, request=request, servers=servers)
        reply = await self._calls.ask("CallServers", message, deadline)
        return [ServerAnswer(a.server, a.code, a.text, a.response) for a in reply.answers]


def any_accepted(call: str, answers: list[ServerAnswer]) -> list[bytes]:
    """Return the responses of the servers that accepted a call. Raises RefusedByServers,
    NoServerAnswers if there are none."""
    accepted = [answer.response for answer in answers if answer.accepted]
    if not accepted:
        _refuse(call, answers)
    return accepted


def all_accepted(call: str, answers: list[ServerAnswer]) -> list[bytes]:
    """Return the responses of all servers.

    Raises ServersDisagree, naming the first server that did not accept, if others did. If none
    accepted, raises RefusedByServers or, if none was reached, NoServerAnswers."""
    failed = [answer for answer in answers if not answer.accepted]
    accepted = [answer for answer in answers if answer.accepted]
    if not accepted:
        _refuse(call, answers)
    if failed:
        raise ServersDisagree(
            call=call,
            server=failed[0].server,
            cause=failed[0].text,
            done=", ".join(answer.server for answer in accepted),
        )
    return [answer.response for answer in accepted]


def _refuse(call: str, answers: list[ServerAnswer]) -> None:
    """Raises the error for a call that no server accepted."""
    spoken = [answer for answer in answers if answer.reached]
    if spoken:
        raise RefusedByServers(CODES[spoken[0].code], spoken[0].text)
    causes = ", ".join(f"{answer.server}: {answer.text}" for answer in answers)
    raise NoServerAnswers(call=call, causes=causes or "none is configured", retry_after=1.0)
