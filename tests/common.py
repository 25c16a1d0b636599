"""Paths that tests share."""

from pathlib import Path

from torch import Tensor

FIXTURES_PATH = Path(__file__).parent / "fixtures"
SNAPSHOTS_PATH = Path(__file__).parent / "_snapshots"
REPOSITORY = Path(__file__).parents[1]
TINY_QWEN2 = FIXTURES_PATH / "tiny-qwen2"


def grad_of(tensor: Tensor) -> Tensor:
    """What backward left on a leaf."""
    assert tensor.grad is not None
    return tensor.grad
