"""Train a policy with GRPO (handout section 7).

    uv run python scripts/train_grpo.py --model data/models/qwen2.5-math-1.5b --output runs/grpo
    uv run python scripts/train_grpo.py --help
    uv run accelerate launch --num_processes 2 scripts/train_grpo.py ...

The loop is cs336_alignment/training/grpo.py. With the embedded policy, on a laptop, as scripts/walkthrough.py does:
    --model data/policy --train-data data/arithmetic/train.jsonl --eval-data data/arithmetic/dev.jsonl
"""

from cs336_alignment.training.command_line import problems_from, run_command
from cs336_alignment.training.grpo import GRPOConfig, train_grpo
from cs336_alignment.training.session import Session


def run(config: GRPOConfig) -> None:
    problems = problems_from("train-data", config.run.train_data)
    eval_problems = problems_from("eval-data", config.run.eval_data)
    with Session(
        config,
        config.run,
        config.optimizer,
        eval_problems,
        steps=config.n_grpo_steps,
        keep_reference=config.kl_coef != 0,
    ) as session:
        train_grpo(config, problems, session)


if __name__ == "__main__":
    run_command(GRPOConfig, __doc__, run)
