"""Train a policy with expert iteration (handout section 5).

    uv run python scripts/train_expert_iteration.py --model data/models/qwen2.5-math-1.5b --output runs/ei
    uv run python scripts/train_expert_iteration.py --help

The loop is cs336_alignment/training/expert_iteration.py; its fine-tuning is training/sft.py.
"""

from cs336_alignment.training.command_line import run_command
from cs336_alignment.training.expert_iteration import ExpertIterationConfig, run_expert_iteration

if __name__ == "__main__":
    run_command(ExpertIterationConfig, __doc__, run_expert_iteration)
