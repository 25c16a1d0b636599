"""Draw and tabulate training runs, from the files of their run folders alone.

    uv run python scripts/report.py runs/grpo                          report.png and report.md in runs/grpo
    uv run python scripts/report.py runs/sft runs/grpo --output docs/figures/training
    uv run python scripts/report.py --group GRPO=runs/s0,runs/s1,runs/s2 --group SFT=runs/sft

A band is the 95% interval of one run's accuracy, or the range of a group's runs around their mean. The curves are
cs336_alignment/training/curves.py.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Annotated, Any

import tyro

from cs336_alignment.run_folder import read_json, write_atomically
from cs336_alignment.training.curves import Curves, draw_curves, group_curves, read_curves


@dataclass(frozen=True)
class Config:
    """What to report on."""

    runs: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Run folders, a line each."""
    labels: tuple[str, ...] = ()
    """Names for them in the legend; default: the folders' names."""
    group: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """NAME=RUN,RUN,...: one line for runs that differ in their seeds. May be given several times."""
    output: Path | None = None
    """Folder for report.png and report.md; default: the run's own where there is one, else report."""


def main(config: Config) -> None:
    curves, folders = read_all(config)
    output = config.output or (folders[0] if len(folders) == 1 else Path("report"))
    picture = BytesIO()
    draw_curves(curves).savefig(picture, dpi=150, format="png")
    write_atomically(output / "report.png", picture.getvalue())
    write_atomically(output / "report.md", page(folders))
    print(f"wrote {output / 'report.png'} and {output / 'report.md'}")


def read_all(config: Config) -> tuple[list[Curves], list[Path]]:
    """The lines to draw, and every run folder they come from.

    Raises:
        ValueError: no runs, not a label a run, or a group that is not NAME=RUN,RUN.
        NoMetricsError: a folder without metrics; it is a ValueError too.
    """
    if not config.runs and not config.group:
        raise ValueError("name a run folder, or --group NAME=RUN,RUN")
    if config.labels and len(config.labels) != len(config.runs):
        raise ValueError(f"{len(config.labels)} --labels for {len(config.runs)} runs: give one each")
    labels = config.labels or [None] * len(config.runs)
    curves = [read_curves(run, label) for run, label in zip(config.runs, labels, strict=True)]
    folders = list(config.runs)
    for group in config.group:
        name, equals, names = group.partition("=")
        members = [Path(member) for member in names.split(",") if member]
        if not (name and equals and members):
            raise ValueError(f"--group {group}: write NAME=RUN,RUN,...")
        curves.append(group_curves(name, [read_curves(member) for member in members]))
        folders += members
    return curves, folders


def page(folders: Sequence[Path]) -> str:
    """`report.md`: a row a run, and the figure."""
    header = ("run", "steps", "minutes", "evaluated on", "first accuracy", "last", "best", "format", "mean length")
    paths = [folder.resolve() for folder in folders]
    names = [path.name for path in paths]
    # Seeds of one algorithm often lie in folders of one name.
    long = [f"{path.parent.name}/{path.name}" if names.count(path.name) > 1 else path.name for path in paths]
    rows = [header, ("---",) * len(header), *map(summary, folders, long)]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    protocols = {row[3] for row in rows[2:]} - {"-"}
    warning = (
        "**The runs were not evaluated alike: do not compare their accuracies.**\n\n" if len(protocols) > 1 else ""
    )
    return (
        "# Training runs\n\n"
        f"{table}\n\n{warning}"
        "Accuracies are those of the evaluations during training, in per cent with their 95% intervals; the best of "
        "several is better than it would be on other problems. Format and mean length (in tokens) are the last "
        "evaluation's. A band is the 95% interval of a run's accuracy, or the range of a group's runs around their "
        "mean.\n\n"
        "![Curves by step and by wall-clock](report.png)\n"
    )


def summary(folder: Path, name: str) -> tuple[str, ...]:
    """One run's row of the table; "-" where there was no evaluation."""
    [rows] = read_curves(folder).runs
    minutes = max(row["timing"]["wall_seconds"] for row in rows) / 60
    began = (name, str(max(row["step"] for row in rows)), f"{minutes:.1f}")
    evaluations = [row for row in rows if row["kind"] == "eval"]
    if not evaluations:
        return (*began, *["-"] * 6)
    last, best = evaluations[-1], max(evaluations, key=lambda row: row["accuracy"])
    return (
        *began,
        protocol(folder, last["n"]),
        *(accuracy(row) for row in (evaluations[0], last)),
        f"{accuracy(best)} at step {best['step']}",
        f"{100 * last['format_rate']:.1f}%",
        f"{last['mean_length']:.1f}",
    )


def protocol(folder: Path, n: int) -> str:
    """What the evaluations asked, and how: figures of different protocols are not to be compared."""
    path = folder / "run.json"
    if not path.exists():
        return f"n = {n:,}"
    record = read_json(path)
    run, engine = record["config"]["run"], record["protocol"]["engine"]
    data = Path(run["eval_data"])
    sampling = f"T = {run['eval_temperature']:g}, at most {run['max_tokens']:,} tokens"
    computed = f"{engine['engine']} {engine['dtype']}"
    return f"{data.parent.name}/{data.stem}, {run['prompt']}, n = {n:,}, {sampling}, {computed}"


def accuracy(row: dict[str, Any]) -> str:
    low, high = row["accuracy_interval"]
    return f"{100 * row['accuracy']:.1f} ({100 * low:.1f} to {100 * high:.1f})"


if __name__ == "__main__":
    try:
        main(tyro.cli(Config, description=__doc__))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
