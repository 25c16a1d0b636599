"""Will the checkpoints of a run fit onto the disk of its folder?

    weights in float32         4 bytes a parameter, a tied head twice
    AdamW's two moments        8 bytes a parameter

A checkpoint is written beside those that are kept, and the oldest of them removed afterwards.
"""

import shutil
from pathlib import Path

from cs336_alignment.run_folder import UsageError
from cs336_alignment.training.memory import FLOAT32, GIB, ModelShape

TOKENIZER_FILES = 32 * 2**20
"""Tokenizer and config beside each checkpoint's weights: an allowance."""
RUN_FILES = 2**28
"""Metrics, completions, wandb's files and plots of a run: an allowance."""


def checkpoint_bytes(shape: ModelShape) -> int:
    """Of one checkpoint (training/checkpoint.py)."""
    return FLOAT32 * shape.stored_parameters + 2 * FLOAT32 * shape.parameters + TOKENIZER_FILES


def check_disk(shape: ModelShape, output: Path | None, keep: int) -> None:
    """Compare what a run will write with what is free.

    Args:
        shape: of the model.
        output: the run folder, whose checkpoints of earlier sessions count as written; None is a new one under runs/.
        keep: checkpoints that are kept.

    Raises:
        UsageError: it does not fit.
    """
    folder = (output or Path("runs")).absolute()
    one = checkpoint_bytes(shape)
    there = [] if output is None else [path for path in (output / "checkpoints").rglob("*") if path.is_file()]
    needed = (keep + 1) * one + RUN_FILES - sum(path.stat().st_size for path in there)
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        fewer = ", or lower --keep-checkpoints" if keep > 1 else ""
        raise UsageError(
            f"--output {folder}: the disk has {free / GIB:.1f} GiB free, and the run writes up to "
            f"{needed / GIB:.1f} GiB more: checkpoints of {one / GIB:.1f} GiB, of which {keep} are kept while the next "
            f"is written. Name a folder on a larger disk{fewer}"
        )
