"""The labelled cases beside the repository (../shared/grader), where they are there: the bars of the grader.

The hostile ones hold live payloads, so all are graded in a process of their own in an empty folder.
"""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from cs336_alignment.drgrpo_grader import question_only_reward_fn, r1_zero_reward_fn

CASES = Path(__file__).parents[2] / "shared" / "grader"
pytestmark = pytest.mark.skipif(not CASES.is_dir(), reason=f"the labelled cases are not at {CASES}")

GRADE_ALL = """\
import json, sys, time
from cs336_alignment.drgrpo_grader import r1_zero_reward_fn
for line in open(sys.argv[1], encoding="utf-8"):
    row = json.loads(line)
    response = f"</think> <answer>{row['answer']}</answer>"
    for again in range(2):  # since a machine may stall once
        start = time.perf_counter()
        verdicts = [r1_zero_reward_fn(response, row["gold"], fast)["answer_reward"] == 1.0 for fast in (True, False)]
        seconds = time.perf_counter() - start
        if seconds < 1:
            break
    print(json.dumps([row["id"], *verdicts, seconds]))
"""


@pytest.fixture(scope="module")
def graded(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    folder = tmp_path_factory.mktemp("hostile")
    file = CASES / "answer_cases.jsonl"
    done = subprocess.run(
        [sys.executable, "-c", GRADE_ALL, file], cwd=folder, capture_output=True, text=True, timeout=300, check=True
    )
    assert list(folder.iterdir()) == []
    rows = {row["id"]: row for row in map(json.loads, file.read_text(encoding="utf-8").splitlines())}
    return [
        {**rows[id_], "fast": fast, "semantic": semantic, "seconds": seconds}
        for id_, fast, semantic, seconds in map(json.loads, done.stdout.splitlines())
    ]


def test_every_call_in_time(graded: list[dict]):
    assert max(row["seconds"] for row in graded) < 1.0


@pytest.mark.parametrize(("kind", "bar"), [("gsm8k", 0.995), ("latex", 0.98)])
def test_fast_agrees_with_the_official_grader_or_refuses_what_it_wrongly_accepts(graded, kind: str, bar: float):
    rows = [row for row in graded if row["kind"] == kind]
    agreed = [
        row["fast"] == row["official_fast"] or (row["official_fast"] and row["label"] is False and not row["fast"])
        for row in rows
    ]
    assert sum(agreed) / len(rows) >= bar


@pytest.mark.parametrize(("kind", "bar"), [("gsm8k", 0.98), ("latex", 0.96), ("hostile", 0.99)])
def test_semantic_accuracy(graded, kind: str, bar: float):
    rows = [row for row in graded if row["kind"] == kind and row["label"] is not None]
    assert sum(row["semantic"] == row["label"] for row in rows) / len(rows) >= bar


def test_false_positives(graded):
    false = [row for row in graded if row["label"] is False]
    assert Counter(row["semantic"] for row in false)[True] <= 0.01 * len(false)


def format_rows() -> list[dict]:
    file = CASES / "format_cases.jsonl"
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.is_file() else []


@pytest.mark.parametrize("row", format_rows(), ids=lambda row: row["id"])
def test_format_cases_are_as_the_official_ones(row: dict):
    reward_fn = {"r1_zero": r1_zero_reward_fn, "question_only": question_only_reward_fn}[row["fn"]]
    if "error" in row["official_fast"]:
        with pytest.raises((TypeError, ValueError)):
            reward_fn(row["response"], row["ground_truth"])
    else:
        assert reward_fn(row["response"], row["ground_truth"]) == row["official_fast"]
