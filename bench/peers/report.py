"""The figures for people: bench/report.py's tables, and one that says what the peers are."""

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from rich.table import Table

from bench import report
from bench.peers.catalog import Peer
from bench.rounds import Summary

COLUMNS: Final = ("variant", "peer", "version", "what", "idle", "started with")
NOTE: Final = (
    "proxy: of the proxy, or of all processes of the model server; × relay: by the bare relay's. "
    "A model server runs the same identity model itself, so it is spared the hop to Triton that "
    "proxies pay for. All run side by side; idle: % of a core while nothing is asked. "
    "`$servers` is bench/peers/servers: the programs and settings of all."
)


class Row(NamedTuple):
    """`idle`: share of a core, where it was measured. `reason`: why it was left out, if it was."""

    peer: Peer
    version: str
    idle: float | None
    reason: str


def peers_table(rows: Sequence[Row]) -> Table:
    """For a terminal."""
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for column in COLUMNS[:-1]:
        table.add_column(column)
    for row in rows:
        table.add_row(*list(cells(row).values())[:-1])
    return table


def cells(row: Row) -> dict[str, str]:
    """What stands under each of COLUMNS."""
    peer = row.peer
    settings = [f"{key}={text}" for key, text in peer.settings.items()]
    command = " ".join([*settings, *peer.command])
    return {
        "variant": peer.name,
        "peer": peer.title,
        "version": row.version,
        "what": f"left out: {row.reason}" if row.reason else f"{peer.role}; {peer.note}",
        "idle": "" if row.idle is None else f"{row.idle:.0%}",
        "started with": f"`{command}`",
    }


def section(
    title: str,
    about: Mapping[str, str],
    summaries: Sequence[Summary],
    rows: Sequence[Row],
    plot: str,
) -> str:
    """Markdown. `plot`: the file to show, beside the page."""
    lines = [
        report.section(title, about, summaries),
        NOTE,
        "",
        f"![Requests per second, as a share of direct Triton's]({plot})",
        "",
        _line(COLUMNS),
        _line(["---"] * len(COLUMNS)),
        *(_line([_flat(text) for text in cells(row).values()]) for row in rows),
    ]
    return "\n".join([*lines, ""])


def _line(words: Sequence[str]) -> str:
    return f"| {' | '.join(words)} |"


def _flat(text: str) -> str:
    """As a cell of a table: one line, and no bar."""
    return " ".join(text.split()).replace("|", "\\|")
