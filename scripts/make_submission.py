"""Zip the project: code, tests, snapshots, scripts, docs, the embedded set and policy, and test_results.xml.

    uv run python scripts/make_submission.py [--output FILE.zip]

Leaves out downloads, runs, checkpoints, caches and virtual environments, by naming what goes in. Uses Python's zipfile,
so no `zip` program is needed, and asks git nothing, so it works in an unzipped copy too.
"""

import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import tyro

ROOT = Path(__file__).resolve().parents[1]
CONTENTS = (
    ".ci",
    ".gitignore",
    ".python-version",
    "CHANGELOG.md",
    "LICENSE",
    "README.md",
    "cs336_alignment",
    "data/README.md",
    "data/arithmetic",
    "data/policy",
    "docs",
    "pyproject.toml",
    "scripts",
    "test_and_make_submission.sh",
    "test_results.xml",
    "tests",
    "uv.lock",
)
LEFT_OUT_FOLDERS = {"__pycache__", ".hypothesis", ".pytest_cache", ".ruff_cache", "checkpoints", "completions", "wandb"}


@dataclass(frozen=True)
class Config:
    """Zip the project."""

    output: Path = ROOT / "cs336_alignment_submission.zip"
    """The file to write; replaced if it is there."""


def main(config: Config) -> None:
    paths = sorted(submitted_files(ROOT))
    with zipfile.ZipFile(config.output, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in paths:
            archive.write(path, path.relative_to(ROOT))
    print(f"{config.output.name}: {len(paths)} files, {config.output.stat().st_size / 2**20:.1f} MiB")


def submitted_files(root: Path) -> Iterator[Path]:
    """Every file that goes in.

    Raises:
        FileNotFoundError: something that must be there is missing, such as test_results.xml before the tests have run.
    """
    for name in CONTENTS:
        path = root / name
        if not path.exists():
            raise FileNotFoundError(f"{name} is missing; test_and_make_submission.sh runs the tests first")
        for file in path.rglob("*") if path.is_dir() else [path]:
            if file.is_file() and not LEFT_OUT_FOLDERS & set(file.relative_to(root).parts):
                yield file


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
