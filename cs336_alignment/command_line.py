"""What every command shares: its options, the recipes that set some of them, and the statuses that it ends with.

    python scripts/train_grpo.py --config scripts/recipes/qwen2.5-math-1.5b-grpo.toml --seed 1
    python scripts/train_grpo.py --config runs/grpo/run.json --output runs/again

A recipe is a TOML file of options as the command line has them, with underscores: `learning_rate = 6e-6`. The run.json
of an earlier run serves too. Options on the command line win.

    0   finished
    75  stopped by a signal or a time limit, with a checkpoint: the same command with --resume auto goes on
    1   failed
    2   the options, or what they name, cannot be used
    130 Ctrl-C before there was anything to save, or a second one

75 is EX_TEMPFAIL of the BSD sysexits: try again later. A job script resubmits itself on 75 alone.
"""

import argparse
import math
import sys
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import tyro

from cs336_alignment.run_folder import UsageError, read_json

Config = TypeVar("Config")

FINISHED, FAILED, UNUSABLE, STOPPED, INTERRUPTED = 0, 1, 2, 75, 130

OF_ONE_RUN = ("output", "resume", "dry_run")
"""What an earlier run's run.json says of that run alone: another run does not take it over."""
RECIPES = "--config FILE reads options from a recipe (scripts/recipes/*.toml) or from the run.json of an earlier run."


def parse_options(config_type: type[Config], description: str | None, arguments: Sequence[str] | None = None) -> Config:
    """The options of a command.

    Args:
        config_type: a dataclass with a field an option; the fields of dataclasses in it have no prefix.
        description: for --help.
        arguments: in place of the command line.

    Raises:
        UsageError: there is no such recipe, it is no TOML, or it has an option that the command has not.
        SystemExit: --help, or an option or its value is wrong: tyro has said which.
    """
    recipes = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    recipes.add_argument("--config", type=Path)
    known, rest = recipes.parse_known_args(arguments)
    given = [] if known.config is None else recipe_arguments(known.config, config_type)
    try:
        # Of an option that is given twice the last one holds.
        config = tyro.cli(
            config_type,
            args=[*given, *rest],
            description=f"{(description or '').rstrip()}\n\n{RECIPES}",
            config=(tyro.conf.OmitArgPrefixes,),
        )
    except SystemExit as ended:
        if ended.code and given:
            print(f"(the options of {known.config} were read before those of the command line)", file=sys.stderr)
        raise
    check_numbers(config)
    return config


def check_numbers(config: Any) -> None:
    """No number of the options may be NaN, infinite, or beyond 64 bits: comparisons let NaN through, seeds overflow.

    Raises:
        UsageError: naming the option.
    """
    for field in fields(config):
        value = getattr(config, field.name)
        if is_dataclass(value):
            check_numbers(value)
            continue
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, int | float) and not (math.isfinite(number) and abs(number) < 2**63):
                raise UsageError(f"--{field.name.replace('_', '-')} must be a number of ordinary size, got {number}")


def recipe_arguments(path: Path, config_type: type) -> list[str]:
    """A recipe as the arguments that say the same.

    Raises:
        UsageError: as `parse_options` has it.
    """
    try:
        recipe = dict(_flat(_config_of_run(path))) if path.suffix == ".json" else tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise UsageError(f"--config: there is no {path}") from None
    except (ValueError, KeyError) as error:  # both decoders' errors are ValueErrors
        raise UsageError(f"--config: {path} is neither TOML nor the run.json of a run: {error}") from error
    options = dict(option_types(config_type))
    for name in recipe:
        if name not in options:
            nearest = get_close_matches(name, options, n=1, cutoff=0.0)[0]
            raise UsageError(f"--config: {path} sets {name}, which this command has not; the nearest is {nearest}")
    return [argument for name, value in recipe.items() for argument in _arguments(name, value, options[name])]


def option_types(config_type: Any) -> Iterator[tuple[str, Any]]:
    """The fields of a dataclass and of those in it, by their names alone, and their types."""
    hints = get_type_hints(config_type)
    for field in fields(config_type):
        if is_dataclass(hints[field.name]):
            yield from option_types(hints[field.name])
        else:
            yield field.name, hints[field.name]


def _config_of_run(path: Path) -> dict[str, Any]:
    return {name: value for name, value in read_json(path)["config"].items() if name != "data_sha256"}


def _flat(tree: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(value)
        elif name not in OF_ONE_RUN:
            yield name, value


def _arguments(name: str, value: Any, option_type: Any) -> list[str]:
    option = name.replace("_", "-")
    if isinstance(value, bool) and option_type is bool:  # one that may be None too takes a word
        return [f"--{option}" if value else f"--no-{option}"]
    if isinstance(value, list):
        return [f"--{option}", *map(str, value)]
    return [f"--{option}={value}"]  # JSON's null is None, as tyro has it
