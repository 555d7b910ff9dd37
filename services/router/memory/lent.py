"""The shared memory that a request's tensors lie in: its names on the servers, and its use."""

from collections.abc import Mapping
from typing import Any, Final

from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2

from services.common.caller import Caller
from services.router.core.shared_memory import MappedMemory, Owner
from services.router.memory.regions import SharedMemory

_MARK: Final = b"shared_memory_region"  # in every message that names a region
_REGION: Final = _MARK.decode()
_OFFSET: Final = "shared_memory_offset"
_SIZE: Final = "shared_memory_byte_size"
_UNKNOWN: Final = "Unable to find shared memory region"


class LentMemory:
    """The memory lent to one request, which holds it once from the beginning.

    Servers write to the memory until they have answered, whether or not the caller waits. Whoever
    sends the request therefore retains it until then."""

    def __init__(
        self, shared: SharedMemory, message: bytes, regions: Mapping[MappedMemory, str]
    ) -> None:
        """Lend `regions`, which maps the memory to the caller's names of its regions."""
        #: The serialized ModelInferRequest, with the servers' names of the memory.
        self.message = message
        self._shared = shared
        self._regions = regions
        #: Whether a server does not know the memory.
        self.unmapped = self._mapped_again = False
        self.retain()

    def retain(self) -> None:
        """Keep the memory mapped until `release`."""
        for mapped in self._regions:
            mapped.in_flight += 1

    def release(self) -> None:
        """Undo one `retain`."""
        for mapped in self._regions:
            self._shared.released(mapped)

    def note_refusal(self, text: str) -> bool:
        """Return whether a refusal says that the server does not know the memory because it started
        after the memory was registered. The memory is `unmapped` then, until `map_again`. This
        happens once: if mapping did not help, it will not help again."""
        self.unmapped = not self._mapped_again and text.startswith(_UNKNOWN)
        return self.unmapped

    async def map_again(self) -> None:
        """Map the memory on servers that have started since. Raises NoController, Rejected."""
        self.unmapped, self._mapped_again = False, True
        for mapped in self._regions:
            await self._shared.map_again(mapped)

    def restore_names(self, text: str) -> str:
        """Return a text with the caller's names."""
        for mapped, name in self._regions.items():
            text = text.replace(mapped.name, name)
        return text

    def restore_answer(self, message: bytes) -> bytes:
        """Return a serialized ModelInferResponse with the caller's names."""
        if not self._named(message):
            return message
        response: Any = service_pb2.ModelInferResponse.FromString(message)
        self._rename(response)
        return bytes(response.SerializeToString())

    def restore_reply(self, message: bytes) -> bytes:
        """Return a serialized ModelStreamInferResponse with the caller's names."""
        if not self._named(message):
            return message
        reply: Any = service_pb2.ModelStreamInferResponse.FromString(message)
        reply.error_message = self.restore_names(reply.error_message)
        self._rename(reply.infer_response)
        return bytes(reply.SerializeToString())

    def _named(self, message: bytes) -> bool:
        return any(mapped.name.encode() in message for mapped in self._regions)

    def _rename(self, response: Any) -> None:
        for tensor in response.outputs:
            if _REGION in tensor.parameters:
                region = tensor.parameters[_REGION]
                region.string_param = self.restore_names(region.string_param)


class RegionLender:
    """Lends requests the regions of shared memory that their tensors lie in."""

    def __init__(self, shared: SharedMemory) -> None:
        self._shared = shared

    def lend(self, message: bytes, caller: Caller) -> LentMemory | None:
        """Return the memory that the tensors of a serialized ModelInferRequest lie in; None if they
        lie in none, or if protobuf cannot read the request.

        Raises RegionNotFound, RegionBounds, NotProxied."""
        if _MARK not in message:
            return None
        try:
            request = service_pb2.ModelInferRequest.FromString(message)
        except DecodeError:
            return None  # refused with a reason where all such messages are
        owner = Owner(caller.tenant, caller.subject)
        regions: dict[MappedMemory, str] = {}
        for tensor in (*request.inputs, *request.outputs):
            parameters = tensor.parameters
            place = _place(parameters)
            if place is None:
                continue
            mapped, begins = self._shared.locate(owner, *place)
            regions[mapped] = place[0]
            parameters[_REGION].string_param = mapped.name
            if _OFFSET in parameters or begins:
                parameters[_OFFSET].int64_param = begins
        if not regions:
            return None
        return LentMemory(self._shared, request.SerializeToString(), regions)


def _place(parameters: Any) -> tuple[str, int, int] | None:
    """Return a tensor's region, offset and size; None if it lies in no region, or if Triton will
    refuse the parameters that say where."""
    if _REGION not in parameters or _SIZE not in parameters:
        return None
    kinds = [
        parameters[name].WhichOneof("parameter_choice") if name in parameters else "int64_param"
        for name in (_REGION, _OFFSET, _SIZE)
    ]
    if kinds != ["string_param", "int64_param", "int64_param"]:
        return None
    offset = parameters[_OFFSET].int64_param if _OFFSET in parameters else 0
    return parameters[_REGION].string_param, offset, parameters[_SIZE].int64_param
