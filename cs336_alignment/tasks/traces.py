"""Reasoning traces to imitate: JSON lines of `prompt` and `response`, as the handout's R1 traces come.

`ground_truth` may be there as well; with it, traces can be filtered by whether their answer is right. So may
`finish_reason`: one of "length" says that the response was cut off.
`scripts/sample_traces.py` writes such a file from a model's own responses.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cs336_alignment.tasks.json_lines import read_json_lines, text_field


@dataclass(frozen=True)
class Trace:
    """A filled prompt, a response to it, the gold answer where it is known, and whether the response was cut off."""

    prompt: str
    response: str
    ground_truth: str | None = None
    truncated: bool = False


def load_traces(path: str | Path) -> list[Trace]:
    """Read a `.jsonl` or `.jsonl.gz` of traces, in file order.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a malformed line; the message names the file and the line.
    """
    return read_json_lines(path, _trace)


def _trace(row: dict[str, Any]) -> Trace:
    gold = text_field(row, "ground_truth") if "ground_truth" in row else None
    prompt, response = text_field(row, "prompt"), text_field(row, "response")
    if not prompt or not response:
        raise ValueError("an empty prompt or response")
    return Trace(prompt, response, gold, truncated=row.get("finish_reason") == "length")
