"""The answers of a Controller on standby, while another one acts."""

from collections.abc import Sequence
from typing import Any, Final

import grpc

from services.common.errors import StandsBy
from services.controller.registry.lease import Lease
from shoal.controller.v1 import controller_service_pb2

RETRY_SECONDS: Final = 0.5

_SERVICE: Final = controller_service_pb2.DESCRIPTOR.services_by_name["ControllerService"]
_KINDS: Final = {  # by (request is a stream, response is a stream)
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}


class Standby(grpc.GenericRpcHandler):
    """The handler of the service from the start of the process.

    It refuses every call, naming who has the lease, until a servicer is added to it as to a server.
    (A real server takes no servicer once it has started.)
    """

    def __init__(self, lease: Lease) -> None:
        self._lease = lease
        self._servicers: list[grpc.GenericRpcHandler] = []
        self._refusals: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            f"/{_SERVICE.full_name}/{method.name}": _KINDS[
                method.client_streaming, method.server_streaming
            ](self._refuse)
            for method in _SERVICE.methods
        }

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        self._servicers.extend(handlers)

    def add_registered_method_handlers(self, service_name: str, handlers: object) -> None:
        """Do nothing: the generic ones are the same."""

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> "grpc.RpcMethodHandler[Any, Any] | None":
        for servicer in self._servicers:
            return servicer.service(handler_call_details)
        return self._refusals.get(handler_call_details.method)

    async def _refuse(self, request: Any, context: Any) -> None:
        raise StandsBy(
            controller=self._lease.holder,
            cause=self._lease.waits_for,
            holder=self._lease.held_by or "nobody known",
            retry_after=RETRY_SECONDS,
        )
