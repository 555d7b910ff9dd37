"""Compressed messages, whole again: the same as what was compressed, and within bounds."""

import asyncio
import gzip
import zlib
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2

from services.common.packed import PACKED, Packed, unpacked
from services.router.admission.memory import Reservation
from services.router.core.admission.memory import MemoryBudget
from services.router.core.errors import MemoryTaken, MessageTooLarge
from services.router.unary import decompression as unpacking

Pack = Callable[[bytes], bytes]
BOTH = pytest.mark.parametrize("pack", [gzip.compress, zlib.compress])
MIB = 1 << 20
ENDLESS = MIB * MIB
MESSAGES = st.one_of(
    st.binary(max_size=300),
    st.builds(lambda part, times: part * times, st.binary(max_size=50), st.integers(0, 5000)),
)


@BOTH
@given(message=MESSAGES, most=st.integers(1, 2000))
def test_pieces_are_the_message(pack: Pack, message: bytes, most: int) -> None:
    packed = pack(message)
    assert packed[:1] in PACKED
    reader = Packed(packed)
    pieces = []
    while piece := reader.read(most):
        assert len(piece) <= most
        pieces.append(piece)
    assert b"".join(pieces) == message
    assert reader.read(most) == b"", "the end stays the end"


@BOTH
@given(message=MESSAGES)
def test_as_much_as_the_limit_and_not_a_byte_more(pack: Pack, message: bytes) -> None:
    assert unpacked(pack(message), len(message)) == message
    if message:
        with pytest.raises(zlib.error, match="too much data"):
            unpacked(pack(message), len(message) - 1)


@BOTH
@given(message=MESSAGES, data=st.data())
def test_without_its_end_it_is_refused(pack: Pack, message: bytes, data: st.DataObject) -> None:
    packed = pack(message)
    cut = data.draw(st.integers(0, len(packed) - 1))
    with pytest.raises(zlib.error):
        unpacked(packed[:cut], ENDLESS)


@given(message=st.binary(min_size=1))
def test_what_is_not_compressed_is_refused(message: bytes) -> None:
    with pytest.raises(zlib.error):
        unpacked(b"\x1f" + message, ENDLESS)


@given(
    st.builds(
        service_pb2.ModelInferRequest,
        model_name=st.text(max_size=5),
        model_version=st.text(max_size=5),
        id=st.text(max_size=5),
        raw_input_contents=st.lists(st.binary(max_size=5), max_size=2),
    )
)
def test_no_request_looks_compressed(request: service_pb2.ModelInferRequest) -> None:
    assert request.SerializeToString()[:1] not in PACKED


# --- a request's ----------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize(
    "size", [0, 1, unpacking.INLINE, unpacking.INLINE + 1, 3 * unpacking.PIECE + 5]
)
async def test_a_request_counts_as_held_once_it_is_whole(pack: Pack, size: int) -> None:
    message, budget = bytes(size), MemoryBudget()
    reservation = Reservation(budget)
    assert await unpacking.decompressed(pack(message), size, reservation) == message
    assert budget.held == size
    reservation.release()
    assert budget.held == 0


async def test_it_grows_no_further_than_it_may() -> None:
    bomb = gzip.compress(bytes(64 * MIB))
    for budget, limit, refusal in (
        (MemoryBudget(), 2 * MIB, MessageTooLarge),
        (MemoryBudget(4 * MIB), ENDLESS, MemoryTaken),
    ):
        budget.grow(0, 2 * MIB)  # another one's
        reservation = Reservation(budget)
        with pytest.raises(refusal):
            await unpacking.decompressed(bomb, limit, reservation)
        assert reservation.size <= 3 * MIB
        reservation.release()
        assert budget.held == 2 * MIB


async def test_others_go_on_meanwhile() -> None:
    """One that comes later and is smaller is whole first."""
    done: list[str] = []

    async def unpack(name: str, size: int) -> None:
        await unpacking.decompressed(
            gzip.compress(bytes(size)), ENDLESS, Reservation(MemoryBudget())
        )
        done.append(name)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(unpack("large", 64 * MIB))
        tasks.create_task(unpack("less", 2 * MIB))
        tasks.create_task(unpack("small", 1000))
    assert done == ["small", "less", "large"]
