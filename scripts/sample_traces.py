"""Sample reasoning traces from a model, for SFT to imitate.

JSON lines of prompt, response, ground_truth, finish_reason, reward.

    uv run python scripts/sample_traces.py --model MODEL --data data/gsm8k/train_full.jsonl --output traces.jsonl
    uv run python scripts/train_sft.py --data traces.jsonl --filter-correct ...

Wrong traces are written too: filtering them is train_sft.py's option, and the handout's experiment.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cs336_alignment.evaluation import GRADERS
from cs336_alignment.prompts import fill, load_template
from cs336_alignment.rollout.engine import Sampling
from cs336_alignment.rollout.selection import EngineName, open_engine
from cs336_alignment.run_folder import write_json_lines
from cs336_alignment.training.command_line import run_command
from cs336_alignment.training.session import problems_from


@dataclass(frozen=True)
class Config:
    """Sample reasoning traces."""

    model: str
    """Hugging Face directory or hub name."""
    output: Path
    """The file to write."""
    data: Path = Path("data/gsm8k/train_full.jsonl")
    """Problems, JSON lines in GSM8K's schema."""
    prompt: Literal["r1_zero", "question_only"] = "r1_zero"
    """Prompt template, and the answer format that is graded."""
    limit: int | None = None
    """Only the first so many problems."""
    samples: int = 1
    """Traces a problem."""
    temperature: float = 1.0
    """Of the softmax."""
    max_tokens: int = 1024
    """Longest trace."""
    seed: int = 0
    """Of the sampling."""
    engine: EngineName = "auto"
    """Rollout engine; auto is vLLM where it is installed."""


def run(config: Config) -> None:
    problems = problems_from("data", config.data)[: config.limit]
    template, grader = load_template(config.prompt), GRADERS[config.prompt]
    sampling = Sampling(config.temperature, max_tokens=config.max_tokens, n=config.samples, seed=config.seed)
    prompts = [fill(template, question=problem.question) for problem in problems]
    with open_engine(config.engine, config.model, progress=True) as engine:
        groups = engine.generate(prompts, sampling)
    rows = [
        {
            "prompt": prompt,
            "response": completion.text,
            "ground_truth": problem.gold,
            "finish_reason": completion.finish_reason,
            "reward": grader(completion.text, problem.gold, True).rewards["reward"],
        }
        for problem, prompt, group in zip(problems, prompts, groups, strict=True)
        for completion in group
    ]
    write_json_lines(config.output, rows)
    print(f"{config.output}: {len(rows):,} traces, {sum(row['reward'] for row in rows):.0f} of them correct")


if __name__ == "__main__":
    run_command(Config, __doc__, run)
