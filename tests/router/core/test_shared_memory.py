"""Whose region is whose, and what lies inside."""

from typing import Any

import pytest

from services.router.core.errors import RegionBounds, RegionExists, RegionNotFound, RegionRefused
from services.router.core.shared_memory import (
    CUDA,
    SYSTEM,
    MappedMemory,
    MemorySource,
    Owner,
    Region,
    Regions,
    file_name,
)

ME, YOU = Owner("default", "me"), Owner("default", "you")
SOURCE = MemorySource(SYSTEM, "/in", (1, 2), 100)


def with_region(name: str = "in", offset: int = 20, size: int = 50) -> tuple[Regions, MappedMemory]:
    regions, mapped = Regions(), MappedMemory("shoal.x", ME, SOURCE)
    regions.add(Region(name, "in", mapped, offset, size))
    return regions, mapped


def test_a_tensor_is_found_where_its_region_lies() -> None:
    regions, mapped = with_region()
    assert regions.locate(ME, "in", 0, 50) == (mapped, 20)
    assert regions.locate(ME, "in", 49, 1) == (mapped, 69)


@pytest.mark.parametrize(
    ("offset", "size", "part"),
    [
        (50, 0, "offset"),
        (-1, 10, "offset"),
        (0, 51, "offset + byte size"),
        (49, 2, "offset + byte size"),
        (0, -1, "offset + byte size"),
        (1, 2**63 - 1, "offset + byte size"),
    ],
)
def test_a_tensor_stays_inside_its_region(offset: int, size: int, part: str) -> None:
    regions, _ = with_region()
    with pytest.raises(RegionBounds) as refused:
        regions.locate(ME, "in", offset, size)
    assert refused.value.message == f"Invalid {part} for shared memory region: 'in'"


def test_nobody_reaches_anothers_region() -> None:
    regions, mapped = with_region()
    with pytest.raises(RegionNotFound, match="Unable to find shared memory region: 'in'"):
        regions.locate(YOU, "in", 0, 1)
    with pytest.raises(RegionNotFound):
        regions.locate(ME, mapped.name, 0, 1)
    assert list(regions.of(YOU, SYSTEM)) == []
    assert regions.remove(YOU, SYSTEM, "") == []
    with pytest.raises(RegionRefused, match="another caller"):
        regions.find_mapped(YOU, "mine", SOURCE)
    regions.require_new(YOU, "in")


def test_a_name_is_taken_once() -> None:
    regions, mapped = with_region()
    with pytest.raises(RegionExists, match="shared memory region 'in' already in manager"):
        regions.add(Region("in", "in", mapped, 0, 1))
    with pytest.raises(RegionRefused):
        regions.require_new(ME, "")


@pytest.mark.parametrize(("offset", "size"), [(0, 101), (100, 1), (0, 0), (0, -1), (2**64, 1)])
def test_a_region_is_a_part_of_what_is_there(offset: int, size: int) -> None:
    regions, mapped = Regions(), MappedMemory("shoal.x", ME, SOURCE)
    with pytest.raises(RegionRefused, match="failed to register shared memory region 'in'"):
        regions.add(Region("in", "in", mapped, offset, size))
    assert regions.mapped() == []


def test_regions_of_one_memory_share_what_the_servers_map() -> None:
    regions, mapped = with_region()
    assert regions.find_mapped(ME, "more", SOURCE) is mapped
    regions.add(Region("more", "/in", mapped, 0, 10))
    assert regions.remove(ME, SYSTEM, "in") == [mapped]
    assert not mapped.idle
    mapped.in_flight = 1
    assert regions.remove(ME, SYSTEM, "more") == [mapped]
    assert not mapped.idle, "a request still uses it"
    mapped.in_flight = 0
    assert mapped.idle


@pytest.mark.parametrize("changed", [{"size": 200}, {"place": (1, 3)}])
def test_memory_that_is_another_now_is_not_shared(changed: dict[str, Any]) -> None:
    regions, _ = with_region()
    with pytest.raises(RegionRefused, match="made anew or has another size"):
        regions.find_mapped(ME, "more", SOURCE._replace(**changed))


def test_what_is_mapped_for_nobody_is_forgotten() -> None:
    regions, mapped = with_region()
    regions.remove(ME, SYSTEM, "in")
    assert regions.find_mapped(ME, "in", SOURCE) is mapped, "until the servers have let go of it"
    regions.forget(mapped)
    assert regions.find_mapped(ME, "in", SOURCE) is None


def test_kinds_are_listed_and_removed_apart() -> None:
    regions, mapped = with_region()
    graphics = MappedMemory("shoal.y", ME, MemorySource(CUDA, "00ff", (0,), 64))
    regions.add(Region("gpu", "", graphics, 0, 64))
    assert [region.name for region in regions.of(ME, SYSTEM)] == ["in"]
    assert regions.remove(ME, SYSTEM, "gpu") == []
    assert regions.remove(ME, CUDA, "") == [graphics]
    assert regions.find(ME, SYSTEM, "in").mapped is mapped
    with pytest.raises(RegionNotFound, match="Unable to find system shared memory region: 'gpu'"):
        regions.find(ME, SYSTEM, "gpu")


@pytest.mark.parametrize(
    "key",
    [
        *("", "/", "//", ".", "..", "/..", "a/b", "../etc/passwd", "/../x", "x\0y", "x" * 256),
        *("sem.lock", "/sem.lock", "/triton_python_backend_shm_region_1"),
    ],
)
def test_keys_that_are_no_clients_memory(key: str) -> None:
    with pytest.raises(RegionRefused):
        file_name("in", key)


@pytest.mark.parametrize(("key", "name"), [("/in", "in"), ("in", "in"), ("a..b", "a..b")])
def test_keys(key: str, name: str) -> None:
    assert file_name("in", key) == name
