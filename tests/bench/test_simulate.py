"""The residency engine in virtual time: traces, cost tables, and the world around the engine."""

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.simulate import __main__ as simulate
from bench.simulate import compare, peers, traces
from bench.simulate.compare import Case
from bench.simulate.traces import GENERATORS, Requests, Shape
from services.simulator import costs, files, journal
from services.simulator.costs import Costs
from services.simulator.tally import Tally
from services.simulator.world import (
    ENGINE_POLICIES,
    REQUEST_SECONDS,
    Hardware,
    World,
    bytes_per_model,
)
from shoal.cli import __main__ as cli

SHAPE = Shape(models=50, requests=20_000, rate=10.0, period=500.0, alpha=1.0, seed=7)


def requests(*asked: tuple[float, int]) -> Requests:
    times, models = zip(*asked, strict=True)
    return Requests(np.array(times, np.float64), np.array(models, np.int64))


def table(sizes: Sequence[int], load: float = 1.0, unload: float = 0.5) -> Costs:
    count = len(sizes)
    names = [f"m{number}" for number in range(count)]
    return Costs(names, np.array(sizes), np.full(count, load), np.full(count, unload))


# --- generators


@pytest.mark.parametrize("name", GENERATORS)
def test_a_generator_gives_what_was_asked_for(name: str) -> None:
    found = traces.whole(GENERATORS[name](SHAPE))
    assert len(found.times) == len(found.models) == SHAPE.requests
    assert (np.diff(found.times) >= 0).all()
    assert found.times[0] >= 0
    assert set(found.models) <= set(range(SHAPE.models))


@pytest.mark.parametrize("name", GENERATORS)
def test_a_seed_gives_the_same_trace_again_and_another_seed_another(name: str) -> None:
    first, again, other = (
        traces.whole(GENERATORS[name](Shape(50, 1000, 10.0, 50.0, seed=seed))) for seed in (1, 1, 2)
    )
    assert (first.times == again.times).all()
    assert (first.models == again.models).all()
    assert (first.models != other.models).any()


@pytest.mark.parametrize("name", GENERATORS)
def test_a_generator_streams(name: str) -> None:
    endless = GENERATORS[name](Shape(models=50, requests=10**15, rate=10.0, period=500.0))
    chunks = list(itertools.islice(endless, 3))
    assert all(len(chunk.times) for chunk in chunks)
    assert all(a.times[-1] <= b.times[0] for a, b in itertools.pairwise(chunks))


def test_zipf_has_its_popularity_and_its_rate() -> None:
    found = traces.whole(traces.zipf(SHAPE))
    shares = np.bincount(found.models, minlength=SHAPE.models) / SHAPE.requests
    deviation = np.sqrt(SHAPE.popularity * (1 - SHAPE.popularity) / SHAPE.requests)
    assert (np.abs(shares - SHAPE.popularity) < 5 * deviation).all()
    ranked = np.sort(SHAPE.popularity)[::-1]
    assert ranked[0] / ranked[9] == pytest.approx(10)
    assert SHAPE.requests / found.times[-1] == pytest.approx(SHAPE.rate, rel=0.03)


def test_diurnal_models_have_their_days_and_nights() -> None:
    found = traces.whole(traces.diurnal(SHAPE))
    assert SHAPE.requests / found.times[-1] == pytest.approx(SHAPE.rate, rel=0.1)
    peaks = set()
    for model in np.argsort(SHAPE.popularity)[-10:]:
        phase = found.times[found.models == model] / SHAPE.period % 1
        by_eighth = np.bincount((phase * 8).astype(int), minlength=8)
        assert by_eighth.max() > 3 * by_eighth.min()
        peaks.add(int(by_eighth.argmax()))
    assert len(peaks) > 1, "all zones have the same time"


def test_in_a_burst_a_few_models_get_half_of_the_requests() -> None:
    flat = Shape(models=200, requests=20_000, rate=10.0, period=8000.0, alpha=0.0)
    group = flat.models // traces.GROUPS

    def most(generated: Requests) -> float:
        """The share of so many models as a group has, in the median of short stretches."""
        stretches = np.array_split(generated.models, 40)
        counts = [np.sort(np.bincount(models))[-group:].sum() for models in stretches]
        return float(np.median(counts)) / (flat.requests / 40)

    assert most(traces.whole(traces.bursts(flat))) > 0.4
    assert most(traces.whole(traces.zipf(flat))) < 0.15
    stretches = np.array_split(traces.whole(traces.bursts(flat)).models, 40)
    hot = [int(np.bincount(models).argmax()) for models in stretches]
    assert len(set(hot)) > 10, "one group stays hot for ever"


def test_a_scan_asks_for_every_model_in_turn() -> None:
    steep = Shape(models=50, requests=4000, rate=10.0, period=100.0, alpha=8.0)
    found = traces.whole(traces.scans(steep))
    assert set(found.models) == set(range(steep.models))
    popular = int(steep.popularity.argmax())
    scanned = found.models[found.models > 1]
    scanned = scanned[scanned != popular]
    ahead = np.diff(scanned)
    assert np.mean((ahead == 1) | (ahead < -40) | (ahead == 2)) > 0.9
    rounds = np.bincount(found.models, minlength=50)[2:]
    assert np.median(rounds) == pytest.approx(found.times[-1] / 100, abs=1)


def test_scans_break_lru() -> None:
    shape = Shape(models=50, requests=4000, rate=10.0, period=20.0)
    costs_ = table([1] * 50, load=0.001)
    rates = [
        peers.pooled(peers.Lru(), traces.whole(generate(shape)), costs_, 15).hit_rate
        for generate in (traces.zipf, traces.scans)
    ]
    assert rates[1] < rates[0] - 0.1


def test_generated_costs_are_within_bounds_and_larger_models_load_longer() -> None:
    found = costs.generated(2000, seed=1)
    assert found.bytes.min() >= costs.SMALLEST
    assert found.bytes.max() <= costs.LARGEST
    assert (found.unload_seconds < found.load_seconds).all()
    correlation = np.corrcoef(np.log(found.bytes), np.log(found.load_seconds))[0, 1]
    assert 0.6 < correlation < 0.99
    assert (found.bytes == costs.generated(2000, seed=1).bytes).all()


# --- files


def test_a_trace_is_read_with_titles_or_without(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text("time,model\n10,resnet\n\n10.5,bert\n12, resnet\n")
    found = files.trace(path)
    assert found.names == ("resnet", "bert")
    assert found.requests.times.tolist() == [0.0, 0.5, 2.0]
    assert found.requests.models.tolist() == [0, 1, 0]
    path.write_text("10,resnet\n10.5,bert\n12,resnet")
    assert files.trace(path).requests.times.tolist() == [0.0, 0.5, 2.0]


def test_a_trace_may_have_dates(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text("2026-03-01T00:00:00Z,a\n2026-03-01 00:00:01.5,b\n2026-03-01T02:00:02+02:00,a")
    assert files.trace(path).requests.times.tolist() == [0.0, 1.5, 2.0]


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("time,model\n1,a\n2\n", 3, "expected time,model, found 1 fields"),
        ("1,a\n2,a,b\n", 2, "found 3 fields"),
        ("1,a\nsoon,a\n", 2, "'soon' is neither a number of seconds nor a date"),
        ("1,a\n\n0.5,a\n", 3, "'0.5' is before the time above"),
        ("1,a\n2,\n", 2, "the model has no name"),
        ("1,a\n2026-03-01T00:00:00Z,a\n", 2, "differ in kind"),
        ("1,a\nnan,a\n", 2, "'nan' is no time"),
        ("1,a\ninf,a\n", 2, "'inf' is no time"),
        ("time,model\n", 1, "there is no request"),
        ("", 1, "there is no request"),
    ],
)
def test_a_bad_trace_says_where(tmp_path: Path, text: str, line: int, reason: str) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(text)
    with pytest.raises(files.Unreadable, match=rf"trace\.csv, line {line}: .*{reason}"):
        files.trace(path)


def test_costs_are_read_in_the_order_of_the_trace(tmp_path: Path) -> None:
    path = tmp_path / "costs.csv"
    path.write_text("model,bytes,load_seconds\na,100,2\nb,2e9,4,0.25\n")
    found = files.costs(path, ["b", "a"])
    assert list(found.names) == ["b", "a"]
    assert found.bytes.tolist() == [2_000_000_000, 100]
    assert found.load_seconds.tolist() == [4.0, 2.0]
    assert found.unload_seconds.tolist() == [0.25, pytest.approx(0.2)]


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("a,100,2\nb,big,2\n", 2, "bytes is 'big'"),
        ("a,100,2\nb,100,-1\n", 2, "load_seconds is '-1'"),
        ("a,100,2\na,100,2\n", 2, "'a' has a line already"),
        ("a,0,2\nb,1,1\n", 1, "bytes is 0"),
        ("a,100,2\n", 1, "no line for 1 models of the trace, 'b' first"),
        ("a,100\n", 1, "expected model,bytes,load_seconds, found 2 fields"),
    ],
)
def test_bad_costs_say_where(tmp_path: Path, text: str, line: int, reason: str) -> None:
    path = tmp_path / "costs.csv"
    path.write_text(text)
    with pytest.raises(files.Unreadable, match=rf"costs\.csv, line {line}: .*{reason}"):
        files.costs(path, ["a", "b"])


# --- the world

A, B, C = 0, 1, 2


def test_a_world_whose_every_number_is_known() -> None:
    """One server, room for two models of three; a load takes 1 s, an unload 0.5 s."""
    world = World(Hardware(1, 200), table([100, 100, 100]), "lru")
    asked = requests(
        (0.0, A),  # cold: waits 1 s
        (0.5, A),  # waits the rest of it
        (2.0, A),  # hit
        (3.0, B),  # cold: waits 1 s
        (5.0, A),  # hit
        (6.0, C),  # cold: B leaves, waits 0.5 + 1 s
        (10.0, A),  # hit
        (12.0, B),  # cold: C leaves, waits 1.5 s
    )
    world.serve(asked)
    world.finish()
    assert world.figures.tally == Tally(
        requests=8,
        hits=3,
        bytes_requested=800,
        bytes_hit=300,
        cold_starts=4,
        load_seconds=4.0,
        waited_seconds=5.5,
        evictions=2,
    )
    events = {name: spent.events for name, spent in world.figures.spent.items()}
    assert events["ResidentWanted"] == events["Loaded"] == 4
    assert events["ResidentWanted, joining"] == 1
    assert events["Unloaded"] == 2


def test_what_is_resident_before_is_hit() -> None:
    world = World(Hardware(2, 100), table([60, 60, 60]), "lru", resident=[C, A])
    world.serve(requests((1.0, C), (2.0, A), (3.0, C)))
    assert world.figures.tally.hits == 3
    assert not world.figures.tally.cold_starts


def test_a_policy_that_the_engine_lacks_is_refused() -> None:
    with pytest.raises(ValueError, match="'random'"):
        World(Hardware(1, 100), table([1]), "random")


@pytest.mark.parametrize("policy", ENGINE_POLICIES)
def test_the_same_seed_gives_the_same_figures(policy: str) -> None:
    shape = Shape(models=20, requests=600, rate=4.0, period=40.0, seed=3)
    table_ = costs.generated(20, seed=3)
    hardware = Hardware(2, int(table_.bytes.max()) + int(table_.bytes.sum()) // 8)
    tallies = []
    for _ in range(2):
        world = World(hardware, table_, policy)
        for chunk in traces.zipf(shape):
            world.serve(chunk)
        world.finish()
        tallies.append(world.figures.tally)
    assert tallies[0] == tallies[1]
    assert tallies[0].evictions
    assert tallies[0].hits


@settings(max_examples=25)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=30))
def test_one_server_whose_requests_come_one_by_one_is_lru(models: list[int]) -> None:
    """The pool is a textbook's. Between two requests there is time for a heartbeat and a load."""
    asked = requests(*((2.0 * (at + 1), model) for at, model in enumerate(models)))
    table_ = table([100] * 5, load=0.5, unload=0.1)
    world = World(Hardware(1, 300), table_, "lru")
    world.serve(asked)
    world.finish()
    pool = peers.pooled(peers.Lru(), asked, table_, 300)
    engine = world.figures.tally
    assert (engine.hits, engine.cold_starts) == (pool.hits, pool.cold_starts)
    assert engine.evictions == pool.evictions


def test_what_a_registered_model_takes() -> None:
    one = bytes_per_model(Hardware(2, 100), table([1] * 300))
    assert 200 < one < 20_000


# --- all together


def test_warm_up_is_not_counted() -> None:
    shape = Shape(models=10, requests=500, rate=2.0, period=50.0)
    case = Case(
        "zipf", lambda: traces.zipf(shape), 500, 100, Hardware(2, 400), table([100] * 10), [1, 2]
    )
    done: list[int] = []
    rows = [
        compare.engine(case, "lru", done.append),
        *compare.pools(case, compare.PEERS, done.append),
    ]
    assert [row.tally.requests for row in rows] == [400] * len(rows)
    assert sum(done) == 500 * len(rows)
    assert all(row.tally.bytes_requested == 40_000 for row in rows)


def test_the_command_runs_a_trace_of_ones_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "trace.csv").write_text("".join(f"{n},m{n % 3}\n" for n in range(30)))
    (tmp_path / "costs.csv").write_text("m0,100,0.5\nm1,100,0.5\nm2,100,0.5\n")
    written = tmp_path / "figures.json"
    code = simulate.main(
        [
            *("--csv", str(tmp_path / "trace.csv"), "--costs", str(tmp_path / "costs.csv")),
            *("--servers", "1", "--budget", "200B", "--warmup", "0", "--policy", "lru"),
            *("--events", "--json", str(written)),
        ]
    )
    assert code == 0
    rows = {row["policy"]: row for row in json.loads(written.read_text())["rows"]}
    # Round and round through three models with room for two: LRU never hits, MIN every other time.
    assert rows["engine lru"]["hits"] == rows["pool lru"]["hits"] == 0
    assert rows["pool belady"]["hits"] == 14
    assert rows["engine lru"]["speed"]["events"]["ResidentWanted"]["events"] == 30
    assert "pool belady-cost" in capsys.readouterr().out


def test_the_command_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "trace.csv").write_text("1,a\nsoon,b\n")
    assert simulate.main(["--csv", str(tmp_path / "trace.csv")]) == 1
    assert "line 2: 'soon' is neither" in " ".join(capsys.readouterr().out.split())
    assert simulate.main(["--budget", "1MiB", "--models", "5"]) == 1
    assert "raise --budget" in " ".join(capsys.readouterr().out.split())


# --- what would be saved


EVENTS = [
    {"kind": "QUEUED", "version": "models/a/versions/1", "time": "2026-03-01T12:00:00Z"},
    {"kind": "LOADING", "version": "models/a/versions/1", "reason": "reserved ram 1.50 GiB"},
    {"kind": "READY", "version": "models/a/versions/1", "reason": "loaded in 2.00 s"},
    {"kind": "QUEUED", "version": "models/b/versions/2", "time": "2026-03-01T12:00:09Z"},
    {"kind": "SERVER_LOST", "version": "", "time": "2026-03-01T12:00:10Z"},
    {
        "kind": "LOADING",
        "version": "models/b/versions/2",
        "reason": "reserved gpu:0 512 MiB, ram 512 MiB",
    },
    {"kind": "READY", "version": "models/b/versions/2", "reason": "loaded in 0.50 s"},
    {"kind": "QUEUED", "version": "models/never/versions/1", "time": "2026-03-01T12:00:11Z"},
    {"kind": "QUEUED", "version": "models/a/versions/1", "time": "2026-03-01T12:01:00Z"},
]


@pytest.mark.parametrize("lines", [True, False])
def test_a_journal_is_a_trace_with_its_costs(tmp_path: Path, lines: bool) -> None:
    path = tmp_path / "events.json"
    events = [{"time": "2026-03-01T12:00:05Z", "reason": "", **event} for event in EVENTS]
    path.write_text(
        "\n".join(map(json.dumps, events)) if lines else json.dumps({"events": events[::-1]})
    )
    assert journal.is_journal(path)
    found, table_ = journal.read(path)
    assert found.names == ("a:1", "b:2")
    assert found.requests.times.tolist() == [0.0, 9.0, 60.0]
    assert found.requests.models.tolist() == [0, 1, 0]
    assert table_.bytes.tolist() == [3 << 29, 1 << 30]
    assert table_.load_seconds.tolist() == [2.0, 0.5]


@pytest.mark.parametrize("text", ['{"kind": "QUEUED"\n', '{"events": []}', '{"a": 1}\n[]\n'])
def test_a_journal_without_loads_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "events.json"
    path.write_text(text)
    with pytest.raises(files.Unreadable):
        journal.read(path)


def test_the_command_says_what_more_memory_saves(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "trace.csv").write_text("".join(f"{n},m{n % 6}\n" for n in range(120)))
    (tmp_path / "costs.csv").write_text("".join(f"m{n},100,0.5\n" for n in range(6)))
    drawn = tmp_path / "memory.svg"
    with pytest.raises(SystemExit, match="0"):
        cli.main(
            [
                *("simulate", str(tmp_path / "trace.csv"), "--costs", str(tmp_path / "costs.csv")),
                *("--budget", "400B", "--plot", str(drawn)),
            ]
        )
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    lru = {row[1]: row for row in rows if row[:1] == ["lru"]}
    assert list(lru) == ["+0%", "+10%", "+20%", "+30%", "+40%", "+50%"]
    assert lru["+0%"][5:7] == ["0", "0%"]
    assert lru["+50%"][3] == "0", "there is room for all six"
    assert lru["+50%"][6] == "100%"
    svg = ET.fromstring(drawn.read_text())
    lines = svg.findall("{http://www.w3.org/2000/svg}polyline")
    assert [len(line.attrib["points"].split()) for line in lines] == [6, 6]


# --- waits


def test_the_longest_waits_stand_beside_the_sums() -> None:
    tally = Tally(requests=2000)
    for seconds in (9.0, 1.0, 5.0):
        tally.waited(seconds)
    assert tally.waited_seconds == 15.0
    assert tally.longest_wait == 9.0
    assert tally.quantile(0.999) == 1.0, "two in two thousand waited longer"
    assert tally.quantile(0.99) == 0.0
    assert tally.figures()["wait_p999"] == 1.0
    assert "waits" not in tally.figures()


def test_a_replica_drains_until_its_last_request_is_over() -> None:
    world = World(Hardware(1, 100), table([100, 100], load=1.0, unload=0.5), "lru")
    begins = 5.0
    world.serve(requests((0.0, A), (begins, A), (begins + 0.02, B)))
    world.finish()
    waits = sorted(world.figures.tally.waits)
    assert waits == pytest.approx([1.0, REQUEST_SECONDS - 0.02 + 0.5 + 1.0])
