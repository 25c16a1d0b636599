"""Fine-tune a policy on worked solutions or reasoning traces (handout section 4).

    uv run python scripts/train_sft.py --model data/models/qwen2.5-math-1.5b --output runs/sft
    uv run python scripts/train_sft.py --unique-examples 256 ...
    uv run python scripts/train_sft.py --data traces.jsonl --filter-correct ...

Without --data the targets are the rationales of --train-data. Those are all correct, so filtering them would be no
experiment; the handout's comparison of filtered with unfiltered data needs traces: R1's, or ones that
scripts/sample_traces.py makes. The loop is cs336_alignment/training/sft.py.
"""

from cs336_alignment.training.command_line import run_command
from cs336_alignment.training.sft import SFTConfig, run_sft

if __name__ == "__main__":
    run_command(SFTConfig, __doc__, run_sft)
