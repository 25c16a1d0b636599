"""Train a policy with GRPO (handout section 7).

    uv run python scripts/train_grpo.py --model data/models/qwen2.5-math-1.5b --output runs/grpo
    uv run python scripts/train_grpo.py --help
    uv run python scripts/launch.py --standalone --nproc-per-node 4 scripts/train_grpo.py ...

The loop is cs336_alignment/training/grpo.py. With the embedded policy, on a laptop, as scripts/walkthrough.py does:
    --model data/policy --train-data data/arithmetic/train.jsonl --eval-data data/arithmetic/dev.jsonl
"""

from cs336_alignment.training.command_line import run_command
from cs336_alignment.training.grpo import GRPOConfig, run_grpo

if __name__ == "__main__":
    run_command(GRPOConfig, __doc__, run_grpo)
