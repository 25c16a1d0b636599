"""The whole arc on a laptop: the embedded policy before, and after SFT, expert iteration and GRPO, from the same start.

    uv run python scripts/walkthrough.py
    uv run python scripts/walkthrough.py --seed 1 --output runs/walkthrough-1

Trains on the embedded training split, watches the development split, and asks the test split at the beginning and at
the end, at temperature 1.0 and greedily. Eleven minutes on two cores. Writes report.md with the table, the
curves and what the policy wrote before and after; each algorithm's run folder lies beside it.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

from matplotlib.figure import Figure
from rich.console import Console

from cs336_alignment import math_baseline
from cs336_alignment.evaluation import EXAMPLES
from cs336_alignment.run_folder import read_complete_json_lines, read_json, write_atomically, write_json
from cs336_alignment.training.checkpoint import Checkpoints
from cs336_alignment.training.command_line import run_command
from cs336_alignment.training.curves import ACCURACY, COLOURS, line, read_curves
from cs336_alignment.training.expert_iteration import ExpertIterationConfig, run_expert_iteration
from cs336_alignment.training.grpo import GRPOConfig, run_grpo
from cs336_alignment.training.learner import OptimizerConfig
from cs336_alignment.training.run_record import WandbMode
from cs336_alignment.training.session import RunConfig
from cs336_alignment.training.sft import SFTConfig, SFTStepsConfig, run_sft

DATA = math_baseline.data_folder()
TEMPERATURES = {"t1": 1.0, "greedy": 0.0}
NAMES = {"sft": "SFT", "expert_iteration": "expert iteration", "grpo": "GRPO"}


class TooLittleGainError(RuntimeError):
    """An algorithm taught the policy less than --required-gain."""


@dataclass(frozen=True)
class Config:
    """Baseline, SFT, expert iteration and GRPO on the embedded set."""

    output: Path = Path("runs/walkthrough")
    """Folder for the report and the runs."""
    seed: int = 0
    """Of all that is drawn."""
    test_limit: int = 1000
    """Test problems."""
    eval_limit: int = 200
    """Development problems asked during training."""
    sft_epochs: int = 2
    """Passes over the worked solutions."""
    n_ei_steps: int = 5
    """Rounds of expert iteration."""
    n_grpo_steps: int = 60
    """GRPO steps, of 256 rollouts."""
    wandb: WandbMode = "disabled"
    """wandb's mode."""
    required_gain: float = 0.0
    """Points of accuracy at temperature 1.0 that each algorithm has to gain on the test split: an error below."""


def main(config: Config) -> None:
    began = monotonic()
    commands = algorithms(config)
    summaries = {"baseline": test(config, "baseline", DATA / "policy")}
    minutes: dict[str, float] = {"baseline": 0.0}
    for name, command in commands.items():
        started = monotonic()
        if not command():
            sys.exit(f"stopped during {NAMES[name]}: there is no report; start again with another --output")
        minutes[name] = (monotonic() - started) / 60
        trained = Checkpoints(config.output / name).latest()
        assert trained is not None, "a run that ended has a checkpoint"
        summaries[name] = test(config, name, trained)
    results = {
        name: {"minutes": round(minutes[name], 2), **{kind: figures(s) for kind, s in summary.items()}}
        for name, summary in summaries.items()
    }
    results["total"] = {"minutes": round((monotonic() - began) / 60, 2), "seed": config.seed}
    write_json(config.output / "results.json", results)
    draw(config, results["baseline"]["t1"]).savefig(config.output / "curves.png", dpi=150)
    write_atomically(config.output / "report.md", report(config, results))
    print(f"report: {config.output / 'report.md'}")
    for name in commands:
        gain = 100 * (results[name]["t1"]["accuracy"] - results["baseline"]["t1"]["accuracy"])
        if gain < config.required_gain:
            raise TooLittleGainError(f"{NAMES[name]} gained {gain:.1f} points, {config.required_gain:g} were required")


def algorithms(config: Config) -> dict[str, Callable[[], bool]]:
    """Each algorithm with the settings that suit a policy of this size; the scripts' defaults are the handout's."""

    def run(name: str, **options: Any) -> RunConfig:
        return RunConfig(
            model=str(DATA / "policy"),
            train_data=DATA / "arithmetic/train.jsonl",
            eval_data=DATA / "arithmetic/dev.jsonl",
            output=config.output / name,
            seed=config.seed,
            engine="transformers",
            engine_batch_size=256,
            max_tokens=128,
            eval_limit=config.eval_limit,
            keep_checkpoints=1,
            wandb=config.wandb,
            **options,
        )

    def optimizer(learning_rate: float) -> OptimizerConfig:
        return OptimizerConfig(learning_rate=learning_rate, token_budget=4096)

    sft = SFTConfig(
        run("sft", eval_every=75, checkpoint_every=1000),
        optimizer(1e-3),
        SFTStepsConfig(epochs=config.sft_epochs, batch_size=32),
    )
    expert_iteration = ExpertIterationConfig(
        run("expert_iteration", eval_every=1, checkpoint_every=5),
        optimizer(1e-3),
        SFTStepsConfig(epochs=2, batch_size=32),
        n_ei_steps=config.n_ei_steps,
        questions_per_step=1024,
    )
    grpo = GRPOConfig(
        run("grpo", eval_every=10, checkpoint_every=100), optimizer(2.5e-4), n_grpo_steps=config.n_grpo_steps
    )
    return {
        "sft": lambda: run_sft(sft),
        "expert_iteration": lambda: run_expert_iteration(expert_iteration),
        "grpo": lambda: run_grpo(grpo),
    }


def test(config: Config, name: str, model: Path) -> dict[str, dict[str, Any]]:
    """The test split at both temperatures, each a run folder with its protocol and report."""
    summaries = {}
    for kind, temperature in TEMPERATURES.items():
        folder = config.output / "test" / f"{name}-{kind}"
        math_baseline.run(
            math_baseline.BaselineConfig(
                model=str(model),
                data=DATA / "arithmetic/test.jsonl",
                temperature=temperature,
                limit=config.test_limit,
                engine="transformers",
                max_batch_size=256,
                chunk_size=256,
                output=folder,
            ),
            Console(stderr=True),
        )
        summaries[kind] = read_json(folder / "summary.json")
    return summaries


def draw(config: Config, baseline: dict[str, Any]) -> Figure:
    """Accuracy on the development split against minutes, in its 95% band; the baseline as a dashed line."""
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    panel = figure.subplots()
    for (name, label), colour in zip(NAMES.items(), COLOURS, strict=False):
        curve = line(read_curves(config.output / name, label), ACCURACY)
        if curve and curve.low and curve.high:
            panel.plot(curve.minutes, curve.values, color=colour, marker="o", markersize=3, label=label)
            panel.fill_between(curve.minutes, curve.low, curve.high, color=colour, alpha=0.15, linewidth=0)
    panel.axhline(100 * baseline["accuracy"], color="black", linestyle="--", linewidth=1, label="baseline, test split")
    panel.set(
        xlabel="wall-clock on a CPU, minutes",
        ylabel="accuracy at temperature 1.0, %",
        title="The embedded policy, taught in three ways from the same start",
        ylim=(0, 100),
    )
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(alpha=0.25)
    panel.legend(frameon=False)
    return figure


def figures(summary: dict[str, Any]) -> dict[str, Any]:
    return {name: summary[name] for name in ("n", "accuracy", "accuracy_interval", "format_rate", "mean_length")}


def report(config: Config, results: dict[str, dict[str, Any]]) -> str:
    """The page for people."""
    lines = [
        "# Baseline, SFT, expert iteration, GRPO",
        "",
        f"The embedded policy on the embedded set, seed {config.seed}; every algorithm starts from the same policy. "
        f"Test split, n = {results['baseline']['t1']['n']:,}, r1_zero prompt, at most 1,024 tokens; 95% Wilson "
        "intervals.",
        "",
        "| | accuracy, T = 1.0 | accuracy, greedy | format, T = 1.0 | tokens a response | training |",
        "|---|---|---|---|---|---|",
    ]
    for name in ("baseline", *NAMES):
        row = results[name]
        lines.append(
            f"| {NAMES.get(name, name)} | {accuracy(row['t1'])} | {accuracy(row['greedy'])} | "
            f"{100 * row['t1']['format_rate']:.1f}% | {row['t1']['mean_length']:.1f} | {row['minutes']:.1f} min |"
        )
    lines += ["", f"{results['total']['minutes']:.1f} minutes in all.", ""]
    lines += ["![Accuracy on the development split during training](curves.png)", "", *samples(config)]
    return "\n".join(lines) + "\n"


def accuracy(row: dict[str, Any]) -> str:
    low, high = row["accuracy_interval"]
    return f"{100 * row['accuracy']:.1f}% ({100 * low:.1f} to {100 * high:.1f})"


def samples(config: Config, count: int = 3) -> list[str]:
    """The same first test problems, answered by each policy at temperature 1.0."""
    lines = ["## The same problems, before and after", ""]
    tests = config.output / "test"
    written = {name: read_complete_json_lines(tests / f"{name}-t1" / EXAMPLES) for name in ("baseline", *NAMES)}
    for index in range(min(count, len(written["baseline"]))):
        example = written["baseline"][index]
        question = example["prompt"].rpartition("User: ")[2].removesuffix("\nAssistant: <think>")
        lines += [f"**{question}** (gold: {example['gold']})", ""]
        for name, rows in written.items():
            verdict = "right" if rows[index]["reward"] else "wrong"
            lines += [f"{NAMES.get(name, name)}, {verdict}:", "", "```", rows[index]["response"].strip(), "```", ""]
    return lines


if __name__ == "__main__":
    run_command(Config, __doc__, main)
