"""The folder that every command writes which trains or evaluates.

    run.json            config, protocol, git commit, versions, hardware, seeds
    metrics.jsonl       one JSON object a line
    completions/*.jsonl what the policy wrote, graded
    report.md, *.png    for people

Whole files are written beside their place, synced and renamed, so that a file that is there is complete. Lines are
appended and synced; a line that a kill cut short is dropped when the file is read.
"""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace `path` by `content`, or leave it as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".partial")
    with temporary.open("wb") as file:
        file.write(content.encode("utf-8") if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def write_json(path: Path, value: Any) -> None:
    """Write an object as indented JSON, atomically; paths become strings."""
    write_atomically(path, json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n")


def read_json(path: Path) -> Any:
    """The object that `write_json` wrote."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_json_lines(path: Path, rows: Iterable[Any]) -> None:
    """Write one JSON object a line, atomically."""
    write_atomically(path, "".join(_line(row) for row in rows))


def append_json_lines(path: Path, rows: Iterable[Any]) -> None:
    """Append one JSON object a line, and sync."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write("".join(_line(row) for row in rows))
        file.flush()
        os.fsync(file.fileno())


def read_complete_json_lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a file that may end in a line cut short, or may not exist."""
    if not path.exists():
        return []
    complete, _, _ = path.read_text(encoding="utf-8").rpartition("\n")
    return [json.loads(line) for line in complete.split("\n") if line]  # not splitlines: U+2028 ends no line here


def _line(row: Any) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"
