"""Write the embedded arithmetic set: data/arithmetic/{train,dev,test}.jsonl.

    python scripts/make_arithmetic.py [--output DIR]

The files are the same, byte for byte, on every machine; `tests/test_arithmetic.py` holds them to that.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import tyro

from cs336_alignment.tasks.arithmetic import splits

DATA = Path(__file__).resolve().parents[1] / "data"


@dataclass(frozen=True)
class Config:
    """Options of the command."""

    output: Path = DATA / "arithmetic"
    """Folder for the three files."""


def main(config: Config) -> None:
    config.output.mkdir(parents=True, exist_ok=True)
    for name, examples in splits().items():
        path = config.output / f"{name}.jsonl"
        temporary = path.with_suffix(".tmp")
        temporary.write_bytes("".join(example.to_json() + "\n" for example in examples).encode())
        os.replace(temporary, path)
        print(f"{path}: {len(examples)} problems")


if __name__ == "__main__":
    main(tyro.cli(Config))
