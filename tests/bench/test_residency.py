"""The residency bench's own arithmetic; no figure is asserted."""

import io
from pathlib import Path

import pytest
from rich.console import Console
from tritonclient.grpc import service_pb2

from bench.residency import cold, loss, models, policies, report, warm
from bench.residency.shoal import Happened

FREE, EVICT, _ = cold.CASES


def pair(number: int, shoal: float, bare: float) -> cold.Pair:
    parts = {"asked → loading": 2.0, "loading → answered": shoal - 2.0}
    return cold.Pair("free", number, "shoal", shoal, bare, parts, {"load": bare})


def test_the_parts_of_a_cold_answer_add_up_to_it() -> None:
    events = [
        Happened(10.001, "EVICTING", "victim"),
        Happened(10.002, "QUEUED", "wanted"),
        Happened(11.0, "UNLOADED", "victim"),
        Happened(11.001, "LOADING", "wanted"),
        Happened(11.1, "READY", "wanted"),
        Happened(11.2, "EVICTING", "after the answer"),
    ]
    parts = cold.parts_of(events, "wanted", 10.0, 11.15)
    assert list(parts) == [
        "asked → evicting",
        "evicting → queued",
        "queued → unloaded",
        "unloaded → loading",
        "loading → ready",
        "ready → answered",
    ]
    assert sum(parts.values()) == pytest.approx(1150)
    assert parts["ready → answered"] == pytest.approx(50)


def test_what_shoal_takes_beyond_is_compared_within_a_pair() -> None:
    pairs = [pair(number, 100 + number, 100.0) for number in range(1, 100)]
    found = cold.summary(FREE, pairs)
    assert (found.beyond, found.shoal, found.bare, found.holds) == (50, 150, 100, False)
    # Of 99 values, the 40th and the 60th hold the median between them in 95 % of cases.
    assert (found.low, found.high) == (40, 60)
    assert found.shoal_parts == {"asked → loading": 2.0, "loading → answered": 148.0}
    assert cold.summary(FREE, pairs[:15]).holds
    assert cold.summary(EVICT, pairs[:45]).holds
    one = cold.summary(FREE, pairs[:1])
    assert (one.low, one.high) == (1, 1)


def sample(number: int, side: str, mode: str, p99: float) -> warm.Sample:
    loads = 0.0 if mode == warm.QUIET else 0.6
    return warm.Sample(number, side, mode, 1000, p99 / 2, p99, loads)


def test_inflation_is_within_a_round_and_a_side() -> None:
    samples = [
        sample(number, side, mode, p99 * number)
        for number in (1, 2)
        for side, mode, p99 in (
            ("bare", "quiet", 100),
            ("bare", "steady", 200),
            ("shoal", "quiet", 400),
            ("shoal", "steady", 600),
            ("shoal", "herd", 1200),
        )
    ]
    found = {(one.side, one.mode): one.times for one in warm.inflations(samples)}
    assert found == {("bare", "steady"): 2, ("shoal", "steady"): 1.5, ("shoal", "herd"): 3}
    _, claims = warm.tables(samples)
    assert [(row[1], row[-1]) for row in claims.rows] == [
        ("0.75", "yes"),
        ("1.50", "yes"),
        ("3.00", ""),
    ]


def test_the_rate_without_a_controller_is_compared_within_a_round() -> None:
    samples = [
        loss.Sample(number, "alone", controller, rate * number, 1, 2)
        for number in (1, 2)
        for controller, rate in (("up", 900), ("down", 980), ("down", 1000), ("up", 1100))
    ]
    assert loss.ratios_of(samples, "alone") == [0.99, 0.99]
    (table,) = loss.tables(samples)
    assert table.rows[0][-2:] == ["0.990", "0.99 to 0.99"]


def test_the_section_has_every_table_and_the_terminal_too() -> None:
    table = report.Table("Title", ("what", "ms"), [["one", "1.5"], ["two", ""]])
    text = report.section("2026-01-01: a title", {"machine": "2 cores"}, [table])
    assert text.splitlines() == [
        *("## 2026-01-01: a title", "", "- machine: 2 cores", "", "**Title**", ""),
        *("| what | ms |", "| --- | ---: |", "| one | 1.5 |", "| two |  |"),
    ]
    console = Console(width=80, file=io.StringIO(), record=True)
    console.print(report.shown(table))
    assert "one  1.5" in console.export_text()


def test_models_answer_differently(tmp_path: Path) -> None:
    first, second = (models.Model(f"m_{number}", number) for number in (1, 2))
    models.write_repository(tmp_path, [first, second])
    assert "np.float32(2)" in (tmp_path / "m_2" / "1" / "model.py").read_text()
    asked = service_pb2.ModelInferRequest.FromString(models.request(first))
    answer = service_pb2.ModelInferResponse(model_name="m_1")
    answer.raw_output_contents.extend(asked.raw_input_contents)
    assert not models.is_right(first, answer.SerializeToString())
    answer.raw_output_contents[0] = (models.numbers() + 1).astype("<f4").tobytes()
    assert models.is_right(first, answer.SerializeToString())
    assert not models.is_right(second, answer.SerializeToString())


def test_the_time_of_loads_is_read_from_events() -> None:
    events = [
        Happened(0.0, "READY", "a"),
        Happened(1.0, "LOADING", "a"),
        Happened(1.5, "LOADING", "b"),
        Happened(3.0, "READY", "a"),
        Happened(4.0, "LOADING", "a"),
        Happened(4.5, "READY", "a"),
    ]
    assert policies.spans(events, "LOADING", "READY") == {"a": [2.0, 0.5]}


def test_policies_are_compared_where_they_ran() -> None:
    found = [
        policies.Outcome("lru", True, 100, 60, 40, 50.0, 4.0),
        policies.Outcome("lru", False, 100, 62, 38, 48.0, 4.0),
        policies.Outcome("gdsf", True, 100, 55, 45, 40.0, 3.0),
        policies.Outcome("gdsf", False, 100, 56, 44, 36.0, 3.5),
    ]
    outcomes, ratios = policies.tables(found)
    assert outcomes.rows[0] == ["lru", "two Tritons", "100", "60.0%", "40", "50", "4.0"]
    assert ratios.rows == [
        ["gdsf by lru", "two Tritons", "0.80"],
        ["gdsf by lru", "simulator", "0.75"],
    ]
