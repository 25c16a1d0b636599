"""Reading JSON lines, plain or gzipped, with errors that name the file and the line."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

Record = TypeVar("Record")


def read_json_lines(path: str | Path, parse: Callable[[dict[str, Any]], Record]) -> list[Record]:
    """Parse every line of a `.jsonl` or `.jsonl.gz` file, in file order.

    Args:
        path: the file; gzipped when its name ends in `.gz`.
        parse: JSON object -> record; it raises ValueError for a row that it cannot use.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a line is not a JSON object, or `parse` refused it; the message names the file and the line.
    """
    records = []
    with (
        gzip.open(path, "rt", encoding="utf-8") if str(path).endswith(".gz") else open(path, encoding="utf-8") as lines
    ):
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise ValueError("not a JSON object")
                records.append(parse(row))
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}") from error
    return records


def text_field(row: dict[str, Any], name: str) -> str:
    """The value of a field that must be there and be text.

    Raises:
        ValueError: it is missing or something else.
    """
    if not isinstance(row.get(name), str):
        raise ValueError(f"no text field {name!r}")
    return row[name]
