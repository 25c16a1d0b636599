"""Draw what became of each run's responses: correct, formatted but wrong, unformatted.

    uv run python scripts/plot_baselines.py docs/runs/*/ --output docs/figures/baselines.png

Reads nothing but `run.json` and `summary.json` of each run folder.
"""

from dataclasses import dataclass
from pathlib import Path

import tyro
from matplotlib.figure import Figure

from cs336_alignment.run_folder import read_json

CATEGORIES = {
    "type1": ("correct", "#2a7f62"),
    "type2": ("formatted but wrong", "#e0a458"),
    "type3": ("unformatted", "#9aa0a6"),
}


@dataclass(frozen=True)
class Config:
    """Draw the outcome of evaluation runs."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run folders, top bar first."""
    output: Path = Path("docs/figures/baselines.png")
    """The picture."""


def main(config: Config) -> None:
    figure = Figure(figsize=(8, 1.1 + 0.55 * len(config.runs)), layout="constrained")
    axes = figure.subplots()
    for row, run in enumerate(config.runs):
        summary = read_json(run / "summary.json")
        left = 0.0
        for category, (label, colour) in CATEGORIES.items():
            share = 100 * summary["categories"][category] / summary["n"]
            axes.barh(row, share, left=left, color=colour, label=label if row == 0 else None)
            left += share
        low, high = (100 * bound for bound in summary["accuracy_interval"])
        axes.plot([low, high], [row, row], color="black", linewidth=1.5, marker="|", markersize=8)
    axes.set_yticks(range(len(config.runs)), [bar_label(run) for run in config.runs])
    axes.invert_yaxis()
    axes.set(xlim=(0, 100), xlabel="responses, % (black: 95% interval of the accuracy)")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(left=False)
    figure.legend(loc="outside upper center", ncols=len(CATEGORIES), frameon=False)
    config.output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(config.output, dpi=150)


def bar_label(run: Path) -> str:
    """Model, data, temperature: enough to tell the bars apart."""
    protocol = read_json(run / "run.json")["protocol"]
    data = Path(protocol["split"])
    sampling = protocol["sampling"]
    return (
        f"{Path(protocol['model']).name}, {data.parent.name} {data.stem}\n"
        f"n = {protocol['n_problems']:,}, T = {sampling['temperature']:g}, {protocol['engine']['engine']}"
    )


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
