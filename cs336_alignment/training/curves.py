"""Curves of training runs, read from the files of their run folders and from nothing else.

`read_curves` takes a folder's `metrics.jsonl`, `group_curves` makes one line of several seeds, `draw_curves` puts lines
into one figure: a row a quantity, by step on the left and by wall-clock on the right. Quantities that no run has are
left out. scripts/report.py is the command.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cs336_alignment.run_folder import read_complete_json_lines
from cs336_alignment.training.run_record import METRICS

# Okabe and Ito's colours, which people with any colour vision can tell apart; the yellow is left out, too pale.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")


class NoMetricsError(ValueError):
    """A folder holds no metrics to draw."""


@dataclass(frozen=True)
class Quantity:
    """Something to draw.

    Attributes:
        kind: of the rows that have it.
        metric: its name there.
        label: of the axis, with the unit.
        scale: multiplies it, 100 for per cent.
        interval: the metric that holds its bounds, [low, high].
        axis: "log" for what differs by orders of magnitude between algorithms.
    """

    kind: Literal["train", "eval"]
    metric: str
    label: str
    scale: float = 1.0
    interval: str | None = None
    axis: Literal["linear", "log"] = "linear"


ACCURACY = Quantity("eval", "accuracy", "accuracy, %", 100, "accuracy_interval")
QUANTITIES = (
    Quantity("train", "reward", "mean reward\nof the rollouts"),
    ACCURACY,
    Quantity("train", "entropy", "entropy of what was\ntrained on, nats"),
    Quantity("train", "rollout_entropy", "entropy of all\nrollouts, nats"),
    Quantity("eval", "mean_length", "mean length\nin evaluation, tokens"),
    Quantity("train", "clip_fraction", "clipped tokens, %", 100),
    Quantity("train", "grad_norm", "gradient norm,\nbefore clipping", axis="log"),
)


@dataclass(frozen=True)
class Curves:
    """One line in every panel: a run, or several of the same algorithm.

    Attributes:
        label: in the legend.
        runs: the rows of metrics of each.
    """

    label: str
    runs: tuple[tuple[dict[str, Any], ...], ...]


@dataclass(frozen=True)
class Line:
    """A quantity over time, scaled; the lists run in parallel. `low` and `high` are None where there is no band."""

    steps: list[int]
    minutes: list[float]
    values: list[float]
    low: list[float] | None
    high: list[float] | None


def read_curves(run_folder: Path, label: str | None = None) -> Curves:
    """The metrics of a training run.

    Args:
        run_folder: the run's.
        label: default: the folder's name.

    Raises:
        NoMetricsError: the folder is not there, or holds no metrics of training.
    """
    path = run_folder / METRICS
    rows = tuple(row for row in read_complete_json_lines(path) if row.get("kind") in ("train", "eval"))
    if not rows:
        missing = "holds no row of training or evaluation" if path.exists() else "is not there"
        raise NoMetricsError(f"{path} {missing}: name the folder of a training run, its --output")
    return Curves(label or run_folder.resolve().name, (rows,))


def group_curves(label: str, curves: Sequence[Curves]) -> Curves:
    """Runs that differ in their seeds alone, as one line: their mean, in a band from the lowest to the highest."""
    return Curves(label, tuple(run for each in curves for run in each.runs))


def line(curves: Curves, quantity: Quantity) -> Line | None:
    """A quantity at the steps that all runs of a line have; None where there are none.

    One run has the quantity's own interval as its band. Several have their range, and the mean of their times.
    """
    tables = [_by_step(run, quantity) for run in curves.runs]
    steps = sorted(set.intersection(*map(set, tables)))
    if not steps:
        return None
    rows = [[table[step] for table in tables] for step in steps]
    values = [[quantity.scale * row[quantity.metric] for row in same_step] for same_step in rows]
    bands: list[tuple[float, float]] | None = None
    if len(tables) > 1:
        bands = [(min(same_step), max(same_step)) for same_step in values]
    elif quantity.interval:
        bands = [tuple(quantity.scale * bound for bound in row[quantity.interval]) for [row] in rows]
    return Line(
        steps=steps,
        minutes=[mean(row["timing"]["wall_seconds"] for row in same_step) / 60 for same_step in rows],
        values=[mean(same_step) for same_step in values],
        low=[low for low, _ in bands] if bands else None,
        high=[high for _, high in bands] if bands else None,
    )


def draw_curves(curves: Sequence[Curves], quantities: Sequence[Quantity] = QUANTITIES) -> Figure:
    """All lines in one figure, a row of panels for each quantity that any of them has.

    Raises:
        NoMetricsError: none has any.
    """
    lines = {quantity: [line(each, quantity) for each in curves] for quantity in quantities}
    drawn = [quantity for quantity in quantities if any(lines[quantity])]
    if not drawn:
        names = ", ".join(quantity.metric for quantity in quantities)
        raise NoMetricsError(f"none of the runs has any of: {names}")
    figure = Figure(figsize=(10, 0.8 + 2.2 * len(drawn)), layout="constrained")
    panels = figure.subplots(len(drawn), 2, sharex="col", sharey="row", squeeze=False)
    for row, quantity in zip(panels, drawn, strict=True):
        for position, each in enumerate(lines[quantity]):
            if each:
                colour = COLOURS[position % len(COLOURS)]
                _draw(row[0], each.steps, each, colour)
                _draw(row[1], each.minutes, each, colour)
        row[0].set_ylabel(quantity.label)
        row[0].set_yscale(quantity.axis)
        for panel in row:
            panel.spines[["top", "right"]].set_visible(False)
            panel.grid(alpha=0.25)
    panels[-1][0].set_xlabel("step of the algorithm")
    panels[-1][1].set_xlabel("wall-clock, minutes")
    _legend(figure, panels[0][0], curves)
    return figure


def _by_step(run: Sequence[dict[str, Any]], quantity: Quantity) -> dict[int, dict[str, Any]]:
    return {row["step"]: row for row in run if row["kind"] == quantity.kind and row.get(quantity.metric) is not None}


def _draw(panel: Axes, at: Sequence[float], each: Line, colour: str) -> None:
    # A mark shows where a short line has its points; on a long one marks would hide it.
    panel.plot(at, each.values, color=colour, linewidth=1.5, marker="o" if len(at) <= 25 else None, markersize=3)
    if each.low and each.high:
        panel.fill_between(at, each.low, each.high, color=colour, alpha=0.15, linewidth=0)


def _legend(figure: Figure, panel: Axes, curves: Sequence[Curves]) -> None:
    """One entry a line, whether or not the first panel has it."""
    handles = [
        panel.plot([], [], color=COLOURS[position % len(COLOURS)], label=each.label)[0]
        for position, each in enumerate(curves)
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=min(4, len(curves)), frameon=False)
