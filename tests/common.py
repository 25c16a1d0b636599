"""Paths that tests share, and small things that several ask."""

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


def glossary() -> set[str]:
    """The metrics that the README explains: the first column of its two tables."""
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    section = text.split("## Glossary of metrics")[1].split("\n## ")[0]
    columns = [line.split("|")[1] for line in section.splitlines() if line.startswith("| ")]
    return {name.strip() for column in columns for name in column.replace(":", ",").split(",")}
