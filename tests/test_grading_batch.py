"""`grade_batch`: order, marks, and a pool that outlives its workers."""

import functools
import os
import signal
import time

import pytest

from cs336_alignment.drgrpo_grader import r1_zero_reward_fn
from cs336_alignment.grading import grade_batch
from cs336_alignment.grading.gold import Gold


def troubled(response: str, gold: Gold) -> dict[str, float]:
    """A reward function that obeys some responses, to its cost."""
    if response == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if response == "exits":
        os._exit(3)
    if response == "hangs":
        time.sleep(600)
    if response == "raises":
        raise ValueError("no")
    return {"reward": float(response == gold)}


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_order_is_kept(workers: int):
    responses = [f"</think> <answer>{n}</answer>" for n in range(40)]
    graded = grade_batch(responses, [str(n // 2 * 2) for n in range(40)], r1_zero_reward_fn, workers)
    assert [item.rewards["reward"] if item.rewards else None for item in graded] == [1.0, 0.0] * 20
    assert all(item.error is None and 0 <= item.seconds < 1 for item in graded)


def test_a_dead_worker_costs_its_item_alone():
    responses = ["a", "killed", "b", "exits", "raises", "hangs", "c", "killed", "d"]
    graded = grade_batch(responses, list("a-b---c-d"), troubled, workers=2, time_limit=2.0)
    assert [item.error for item in graded] == [
        None, "worker died", None, "worker died", "ValueError: no", "over 2 s", None, "worker died", None,
    ]  # fmt: skip
    assert [item.rewards for item in graded if item.error is None] == [{"reward": 1.0}] * 4
    assert all(item.rewards is None for item in graded if item.error)
    assert graded[5].seconds >= 2.0


def test_an_exception_marks_its_item_without_workers_too():
    graded = grade_batch(["a", "raises", "b"], ["a", "", ""], troubled)
    assert [item.error for item in graded] == [None, "ValueError: no", None]


def test_a_partial_carries_the_mode():
    semantic = functools.partial(r1_zero_reward_fn, fast=False)
    (item,) = grade_batch(["</think> <answer>two</answer>"], ["2"], semantic, workers=1)
    assert item.rewards == {"format_reward": 1.0, "answer_reward": 1.0, "reward": 1.0}


def test_an_empty_batch_starts_nothing():
    assert grade_batch([], [], troubled, workers=4) == []


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="2 responses but 1 gold"):
        grade_batch(["a", "b"], ["a"], troubled)
    with pytest.raises(ValueError, match="workers"):
        grade_batch(["a"], ["a"], troubled, workers=-1)
    unpicklable = lambda response, gold: {"reward": 1.0}  # noqa: E731
    with pytest.raises(Exception, match="pickle"):
        grade_batch(["a"], ["a"], unpicklable, workers=1)
