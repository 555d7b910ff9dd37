"""Requests per second as a share of direct Triton's, drawn: one panel for each workload."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from bench.peers.catalog import PEERS, PROXY
from bench.rounds import DIRECT, RELAY, Summary
from bench.subjects import ROUTER
from bench.workloads import WORKLOADS

OWN: Final = "Shoal's Router"
FRONT: Final = "other proxies in front of the same Triton"
SERVERS: Final = "model servers, running the model themselves"
COLOURS: Final = {OWN: "#0b6e8f", FRONT: "#9aa9b2", SERVERS: "#d08c3c"}

_LABELS: Final = {
    ROUTER: "Shoal Router",
    RELAY: "bare Python relay",
    **{peer.name: peer.title for peer in PEERS},
}
_PROXIES: Final = {RELAY, *(peer.name for peer in PEERS if peer.role == PROXY)}


def available() -> bool:
    return importlib.util.find_spec("matplotlib") is not None


def kind(variant: str) -> str:
    """The key of COLOURS."""
    if variant == ROUTER:
        return OWN
    return FRONT if variant in _PROXIES else SERVERS


def shares(summaries: Sequence[Summary]) -> dict[str, list[tuple[str, float]]]:
    """By workload, the (variant, share of direct Triton's rate) to draw, from the top."""
    found: dict[str, list[tuple[str, float]]] = {}
    for one in summaries:
        if one.variant != DIRECT and one.of_direct is not None:
            found.setdefault(one.workload, []).append((one.variant, one.of_direct))
    return {name: sorted(rows, key=lambda row: -row[1]) for name, rows in found.items()}


def _panel(axis: Any, title: str, rows: Sequence[tuple[str, float]]) -> None:
    names = [_LABELS[variant] for variant, _ in rows]
    bars = axis.barh(
        names,
        [share for _, share in rows],
        color=[COLOURS[kind(variant)] for variant, _ in rows],
        height=0.7,
    )
    axis.bar_label(bars, [f"{share:.2f}" for _, share in rows], padding=3)
    axis.axvline(1, color="#444444", linewidth=1, linestyle="--")
    axis.set_title(title)
    axis.set_xlim(0, 1.15 * max(1.0, *(share for _, share in rows)))
    axis.invert_yaxis()
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(axis="y", length=0)


def draw(path: Path, summaries: Sequence[Summary]) -> None:
    """Writes `path`, in the format of its ending. Needs matplotlib (`available`)."""
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    panels = shares(summaries)
    titles = {workload.name: workload.title for workload in WORKLOADS}
    with mpl.rc_context({"font.size": 10, "svg.hashsalt": "shoal"}):
        figure = Figure(figsize=(12, 4.2), facecolor="white")
        axes = figure.subplots(1, len(panels), squeeze=False)[0]
        for axis, (workload, rows) in zip(axes, panels.items(), strict=True):
            _panel(axis, titles[workload], rows)
        figure.legend(
            handles=[Patch(color=colour, label=name) for name, colour in COLOURS.items()],
            loc="lower center",
            ncols=len(COLOURS),
            frameon=False,
        )
        figure.suptitle("Requests per second, as a share of direct Triton's")
        figure.tight_layout(rect=(0, 0.07, 1, 1))
        metadata = {"Date": None} if path.suffix == ".svg" else None
        figure.savefig(path, dpi=150, metadata=metadata)
