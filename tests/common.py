"""Paths that tests share."""

from pathlib import Path

FIXTURES_PATH = Path(__file__).parent / "fixtures"
SNAPSHOTS_PATH = Path(__file__).parent / "_snapshots"
REPOSITORY = Path(__file__).parents[1]
TINY_QWEN2 = FIXTURES_PATH / "tiny-qwen2"
