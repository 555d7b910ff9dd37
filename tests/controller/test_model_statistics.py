"""Triton's counters, added up over servers and over lives."""

import random
from typing import Any

from tritonclient.grpc import service_pb2

from services.controller.core.entities import ReplicaKey, Unit
from services.controller.measurement.model_statistics import Totals
from services.controller.triton.statistics import by_unit

A, B = Unit("m", 1), Unit("m", 2)


def counted(unit: Unit, requests: int, *, last: int = 0, sizes: tuple[int, ...] = ()) -> Any:
    """As many requests, each of 10 ns in the queue, and one batch of each of `sizes`."""
    row = service_pb2.ModelStatistics(name=unit.model, version=str(unit.version))
    row.inference_count = row.execution_count = requests
    row.last_inference = last
    row.inference_stats.success.count = row.inference_stats.queue.count = requests
    row.inference_stats.queue.ns = 10 * requests
    for size in sizes:
        batch = row.batch_stats.add(batch_size=size)
        batch.compute_infer.count, batch.compute_infer.ns = 1, 100 * size
    return row


def here(*made: Any) -> dict[Unit, Any]:
    return by_unit(made)


def test_replicas_are_added_up() -> None:
    totals = Totals()
    totals.all_seen("t0", here(counted(A, 3, last=50, sizes=(1, 4)), counted(B, 1)))
    totals.all_seen("t1", here(counted(A, 4, last=40, sizes=(4, 8))))
    both = totals.of(A)
    assert (both.name, both.version) == ("m", "1")
    assert (both.inference_count, both.execution_count, both.last_inference) == (7, 7, 50)
    assert (both.inference_stats.queue.count, both.inference_stats.queue.ns) == (7, 70)
    batches = {b.batch_size: (b.compute_infer.count, b.compute_infer.ns) for b in both.batch_stats}
    assert batches == {1: (1, 100), 4: (2, 800), 8: (1, 800)}
    assert totals.of(B).inference_count == 1


def test_responses_are_added_by_their_place() -> None:
    totals = Totals()
    for server, count in (("t0", 2), ("t1", 3)):
        row = counted(A, 1)
        row.response_stats["0"].success.count = count
        row.response_stats[str(count)].fail.ns = count
        totals.all_seen(server, here(row))
    responses = totals.of(A).response_stats
    assert responses["0"].success.count == 5
    assert (responses["2"].fail.ns, responses["3"].fail.ns) == (2, 3)


def test_memory_is_what_is_taken_now() -> None:
    totals = Totals()
    for server in ("t0", "t1"):
        row = counted(A, 1)
        row.memory_usage.add(type="GPU", id=0, byte_size=100)
        totals.all_seen(server, here(row))
    assert [(m.type, m.id, m.byte_size) for m in totals.of(A).memory_usage] == [("GPU", 0, 200)]
    totals.all_seen("t1", {})
    assert [m.byte_size for m in totals.of(A).memory_usage] == [100]
    assert totals.of(A).inference_count == 2


def test_what_left_stays_counted() -> None:
    totals = Totals()
    totals.all_seen("t0", here(counted(A, 3)))
    totals.seen("t0", here(counted(A, 5)))
    totals.all_seen("t0", {})
    assert totals.of(A).inference_count == 5
    totals.all_seen("t0", here(counted(A, 1)))
    assert totals.of(A).inference_count == 6


def test_a_reload_between_two_looks_is_noticed() -> None:
    totals = Totals()
    totals.all_seen("t0", here(counted(A, 5)))
    totals.all_seen("t0", here(counted(A, 2)))
    assert totals.of(A).inference_count == 7


def test_a_reload_that_was_ordered_is_noticed_even_when_it_counted_more_since() -> None:
    totals = Totals()
    totals.all_seen("t0", here(counted(A, 5)))
    totals.begins(ReplicaKey("t0", A))
    totals.begins(ReplicaKey("t1", A))
    totals.all_seen("t0", here(counted(A, 9)))
    assert totals.of(A).inference_count == 14


def test_what_was_counted_before_anybody_asked_is_left_out() -> None:
    totals = Totals()
    totals.begins(ReplicaKey("t0", A))
    totals.own("t0", here(counted(A, 1, last=5, sizes=(1,))))
    totals.all_seen("t0", here(counted(A, 1, last=5, sizes=(1,))))
    nothing = totals.of(A)
    assert (nothing.inference_count, nothing.last_inference) == (0, 0)
    assert list(nothing.batch_stats) == []
    totals.all_seen("t0", here(counted(A, 4, last=9, sizes=(1, 2))))
    assert (totals.of(A).inference_count, totals.of(A).last_inference) == (3, 9)
    assert [b.batch_size for b in totals.of(A).batch_stats] == [2]
    assert totals.of(A).inference_stats.queue.ns == 30


def test_what_was_left_out_of_one_life_counts_in_the_next() -> None:
    totals = Totals()
    totals.own("t0", here(counted(A, 2)))
    totals.all_seen("t0", here(counted(A, 5)))
    totals.all_seen("t0", here(counted(A, 1)))
    assert totals.of(A).inference_count == 4
    totals.begins(ReplicaKey("t0", A))
    totals.all_seen("t0", here(counted(A, 7)))
    assert totals.of(A).inference_count == 11


def test_what_another_ones_probe_took_less_long_falls_not_below_zero() -> None:
    """Who was frozen compares with its own probe what has been loaded by another one since."""
    totals = Totals()
    probed, anew = counted(A, 1, sizes=(1,)), counted(A, 1, sizes=(1,))
    totals.own("t0", here(probed))
    anew.inference_stats.queue.ns -= 3
    anew.batch_stats[0].compute_infer.ns -= 30
    totals.all_seen("t0", here(anew))
    both = totals.of(A)
    assert both.inference_count == 0
    assert (both.inference_stats.queue.count, both.inference_stats.queue.ns) == (0, 0)


def test_a_server_that_is_away_for_a_while_is_counted_once() -> None:
    totals = Totals()
    totals.all_seen("t0", here(counted(A, 5)))
    assert totals.of(A).inference_count == 5
    totals.all_seen("t0", here(counted(A, 6)))
    assert totals.of(A).inference_count == 6


def test_what_was_never_counted_is_zero() -> None:
    totals = Totals()
    assert totals.counted() == set()
    nothing = totals.of(A)
    assert (nothing.name, nothing.version, nothing.inference_count) == ("m", "1", 0)
    set_there = {field.name for field, _ in nothing.inference_stats.ListFields()}
    assert {"success", "fail", "queue", "compute_input", "cache_miss"} <= set_there


def test_the_past_of_what_is_registered_no_more_is_forgotten() -> None:
    totals = Totals()
    totals.all_seen("t0", here(counted(A, 5), counted(B, 2)))
    totals.all_seen("t0", here(counted(B, 3)))
    totals.forget([A, B])
    assert totals.counted() == {B}
    assert (totals.of(A).inference_count, totals.of(B).inference_count) == (0, 3)


def test_rows_without_a_version_are_no_units() -> None:
    row = counted(A, 1)
    row.version = ""
    assert by_unit([row]) == {}


def test_totals_never_fall_whatever_happens() -> None:
    draw = random.Random(4)
    totals = Totals()
    true, living, seen = 0, {"t0": 0, "t1": 0}, 0
    for _ in range(2000):
        server = draw.choice(["t0", "t1"])
        match draw.choice(["serve", "look", "reload", "leave"]):
            case "serve":
                if living[server] >= 0:
                    living[server] += 1
                    true += 1
            case "look":
                there = living[server] >= 0
                totals.all_seen(server, here(counted(A, living[server])) if there else {})
            case "reload" if living[server] < 0:
                totals.begins(ReplicaKey(server, A))
                living[server] = 0
            case "leave" if living[server] >= 0:
                totals.seen(server, here(counted(A, living[server])))
                living[server] = -1
        now = totals.of(A).inference_count
        assert seen <= now <= true
        seen = now
    for server, count in living.items():
        totals.all_seen(server, here(counted(A, count)) if count >= 0 else {})
    assert totals.of(A).inference_count == true
