"""Download GSM8K into data/gsm8k and carve a development split from its training problems.

    uv run python scripts/prepare_gsm8k.py                 from the Hugging Face hub
    uv run python scripts/prepare_gsm8k.py --from DIR      from DIR/train.jsonl and DIR/test.jsonl

Writes train.jsonl (7,473 problems), test.jsonl (1,319), dev.jsonl (1,024 of train, drawn with a fixed seed) and
train_full.jsonl (the other 6,449). Tune on dev: what is tuned on test says nothing about new problems.
"""

import hashlib
import json
import random
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from datasets import load_dataset

from cs336_alignment.run_folder import write_json_lines
from cs336_alignment.tasks.json_lines import read_json_lines, text_field

Row = dict[str, str]

ROWS = {"train": 7473, "test": 1319}
CONTENT_SHA256 = {
    "train": "dbfb8f4c1b8cd0a9eabda2b92a91a86ef055650a0c89b3ccf476b68366871df1",
    "test": "a33a0e39a23f140dc40e278052f9af20f820b74653121671e2f7131e0eb67d91",
}
DEV_ROWS = 1024
DEV_SEED = 336


@dataclass(frozen=True)
class Config:
    """Download GSM8K and carve the development split."""

    source: Annotated[Path | None, tyro.conf.arg(name="from")] = None
    """A folder with train.jsonl and test.jsonl, instead of the hub."""
    output: Path = Path("data/gsm8k")
    """Where the four files go."""


def main(config: Config) -> None:
    splits = {name: read_split(name, config.source) for name in ROWS}
    for name, rows in splits.items():
        check(name, rows)
    splits["dev"], splits["train_full"] = carve_dev(splits["train"])
    for name, rows in splits.items():
        write_json_lines(config.output / f"{name}.jsonl", rows)
        print(f"{config.output / name}.jsonl: {len(rows):,} problems, sha256 of the content {content_sha256(rows)}")


def read_split(name: str, source: Path | None) -> list[Row]:
    """The rows of a split, with just the two fields of the schema."""
    if source is not None:
        return read_json_lines(source / f"{name}.jsonl", schema)
    try:
        rows = load_dataset("openai/gsm8k", "main", split=name)
    except OSError as error:
        sys.exit(f"error: cannot reach the hub ({error}); with the files at hand, give --from DIR")
    return [schema(dict(row)) for row in rows]


def schema(row: dict[str, Any]) -> Row:
    return {field: text_field(row, field) for field in ("question", "answer")}


def check(name: str, rows: list[Row]) -> None:
    """Stop unless these are the published problems, all of them, in their order."""
    if len(rows) != ROWS[name]:
        sys.exit(f"error: GSM8K {name} has {ROWS[name]:,} problems, this source has {len(rows):,}; nothing was written")
    found = content_sha256(rows)
    if found != CONTENT_SHA256[name]:
        sys.exit(f"error: the content of {name} has sha256 {found}, not {CONTENT_SHA256[name]}; nothing was written")


def carve_dev(train: list[Row]) -> tuple[list[Row], list[Row]]:
    """Split the training rows into (dev, the rest), both in their original order."""
    chosen = set(random.Random(DEV_SEED).sample(range(len(train)), DEV_ROWS))
    dev = [row for index, row in enumerate(train) if index in chosen]
    rest = [row for index, row in enumerate(train) if index not in chosen]
    return dev, rest


def content_sha256(rows: Iterable[Row]) -> str:
    """Of the texts alone, so that it does not depend on how JSON was written."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps([row["question"], row["answer"]]).encode("ascii"))
    return digest.hexdigest()


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
