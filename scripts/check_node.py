"""Prove a machine before the first job: `cs336-check-node` from a checkout. docs/check-node.md says what it checks.

uv run python scripts/check_node.py --output /scratch/me/runs --model data/models/qwen2.5-math-1.5b
uv run python scripts/check_node.py --help
"""

from cs336_alignment.node_check.command import main

if __name__ == "__main__":
    main()
