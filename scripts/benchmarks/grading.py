"""Calls a second of this grader and of math-verify, side by side on one core; their agreement with labels is not the
subject here (docs/grading.md has it).

    uv run python scripts/benchmarks/grading.py [--cases FILE] [--rounds 5]

Without a file of cases (JSON lines of kind, answer, gold) it times 1,000 answers made here in the forms that GSM8K
answers take.
"""

import argparse
import json
import logging
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from cs336_alignment.drgrpo_grader import r1_zero_reward_fn

Row = tuple[str, str]
FORMS = (
    "{n}", "{n}.00", "${n}", "\\${n}", "{n} dollars", "$\\boxed{{{n}}}$", "{n}\\text{{ cm}}", "The answer is {n}.",
    "She has {n} apples left.", "12 + {m} = {n}", "**{n}**", "{n}%", "x = {n}", "{n} eggs per day",
    "\\frac{{{n}}}{{1}}",
)  # fmt: skip


def made_rows(count: int = 1000) -> list[Row]:
    """Answers in GSM8K's usual forms, half of them wrong."""
    sample = random.Random(0)
    rows = []
    for _ in range(count):
        gold = sample.randint(2, 5000)
        said = gold if sample.random() < 0.5 else gold + sample.randint(1, 9)
        rows.append((sample.choice(FORMS).format(n=said, m=abs(said - 12)), str(gold)))
    return rows


def read_rows(path: Path) -> list[Row]:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [(row["answer"], row["gold"]) for row in rows if row["kind"] == "gsm8k"]


def calls_per_second(grade: Callable[[str, str], object], rows: list[Row], rounds: int) -> float:
    """The median of the rounds, after one round of warm-up."""
    seconds = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        for answer, gold in rows:
            grade(answer, gold)
        seconds.append(time.perf_counter() - start)
    return len(rows) / statistics.median(seconds[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    from math_verify import parse, verify

    logging.disable(logging.CRITICAL)  # math-verify logs what it cannot parse

    rows = read_rows(arguments.cases) if arguments.cases else made_rows()
    graders: dict[str, Callable[[str, str], object]] = {
        "fast=True": lambda answer, gold: r1_zero_reward_fn(f"</think> <answer>{answer}</answer>", gold, True),
        "fast=False": lambda answer, gold: r1_zero_reward_fn(f"</think> <answer>{answer}</answer>", gold, False),
        "math-verify": lambda answer, gold: verify(parse(gold), parse(answer)),
    }
    speeds = {name: calls_per_second(grade, rows, arguments.rounds) for name, grade in graders.items()}
    print(f"{len(rows)} rows, median of {arguments.rounds} rounds")
    for name, speed in speeds.items():
        print(f"{name:12} {speed:8.0f} calls/s   {speed / speeds['math-verify']:6.1f} x math-verify")


if __name__ == "__main__":
    main()
