"""Requests per second as a share of direct Triton's, drawn: one panel for each workload."""

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from bench.peers.catalog import PEERS, PROXY
from bench.rounds import DIRECT, RELAY, Summary
from bench.subjects import LANE, ROUTER
from bench.workloads import WORKLOADS

OWN: Final = "Shoal: the lane, and the Router by itself"
FRONT: Final = "other proxies in front of the same Triton"
SERVERS: Final = "model servers, running the model themselves"
COLOURS: Final = {OWN: "#0b6e8f", FRONT: "#9aa9b2", SERVERS: "#d08c3c"}

_LABELS: Final = {
    LANE: "Shoal",
    ROUTER: "Shoal's Router alone",
    RELAY: "bare Python relay",
    **{peer.name: peer.title for peer in PEERS},
}
_OURS: Final = (LANE, ROUTER)
_PROXIES: Final = {RELAY, *(peer.name for peer in PEERS if peer.role == PROXY)}


def available() -> bool:
    return importlib.util.find_spec("matplotlib") is not None


def kind(variant: str) -> str:
    """The key of COLOURS."""
    if variant in _OURS:
        return OWN
    return FRONT if variant in _PROXIES else SERVERS


def shares(summaries: Sequence[Summary]) -> dict[str, dict[str, float]]:
    """Return the share of direct Triton's rate by workload and variant, Shoal's own first."""
    found: dict[str, dict[str, float]] = {}
    for one in sorted(summaries, key=lambda one: one.variant not in _OURS):
        if one.variant != DIRECT and one.of_direct is not None:
            found.setdefault(one.workload, {})[one.variant] = one.of_direct
    return found


def _panel(axis: Any, title: str, shown: Mapping[str, float]) -> None:
    bars = axis.barh(
        [_LABELS[variant] for variant in shown],
        list(shown.values()),
        color=[COLOURS[kind(variant)] for variant in shown],
        height=0.7,
        zorder=2,
    )
    axis.axvline(1, color="#444444", linewidth=1, linestyle="--", zorder=1)
    texts = [f"{share:.2f}" if share >= 0.01 else f"{share:.3f}" for share in shown.values()]
    for label in axis.bar_label(bars, texts, padding=4):
        label.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 1})
    axis.set_title(title)
    axis.spines[["top", "right", "left"]].set_visible(False)
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
        axes = figure.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0]
        for axis, (workload, shown) in zip(axes, panels.items(), strict=True):
            _panel(axis, titles[workload], shown)
        axes[0].set_xlim(0, 1.15 * max(1.0, *(max(shown.values()) for shown in panels.values())))
        axes[0].invert_yaxis()
        figure.legend(
            handles=[Patch(color=colour, label=name) for name, colour in COLOURS.items()],
            loc="lower center",
            ncols=len(COLOURS),
            frameon=False,
        )
        figure.suptitle("Requests per second, as a share of direct Triton's (dashed)")
        figure.tight_layout(rect=(0, 0.07, 1, 1))
        metadata = {"Date": None} if path.suffix == ".svg" else None
        figure.savefig(path, dpi=150, metadata=metadata)
