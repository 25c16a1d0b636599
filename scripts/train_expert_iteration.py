"""Train a policy with expert iteration (handout section 5).

    uv run python scripts/train_expert_iteration.py --model data/models/qwen2.5-math-1.5b --output runs/ei
    uv run python scripts/train_expert_iteration.py --help

The loop is cs336_alignment/training/expert_iteration.py; its fine-tuning is training/sft.py.
"""

from cs336_alignment.training.command_line import problems_from, run_command
from cs336_alignment.training.expert_iteration import ExpertIterationConfig, train_expert_iteration
from cs336_alignment.training.session import Session


def run(config: ExpertIterationConfig) -> None:
    problems = problems_from("train-data", config.run.train_data)
    eval_problems = problems_from("eval-data", config.run.eval_data)
    with Session(config, config.run, config.optimizer, eval_problems, steps=config.n_ei_steps) as session:
        train_expert_iteration(config, problems, session)


if __name__ == "__main__":
    run_command(ExpertIterationConfig, __doc__, run)
