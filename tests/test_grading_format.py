"""The format contract of the two prompts, the golds, and the rewards."""

import pytest

from cs336_alignment.drgrpo_grader import question_only_reward_fn, r1_zero_reward_fn
from cs336_alignment.grading import (
    extract_answer_question_only,
    extract_answer_r1_zero,
    grade_question_only,
    grade_r1_zero,
)

RIGHT = {"format_reward": 1.0, "answer_reward": 1.0, "reward": 1.0}
WRONG = {"format_reward": 1.0, "answer_reward": 0.0, "reward": 0.0}
UNFORMATTED = {"format_reward": 0.0, "answer_reward": 0.0, "reward": 0.0}


@pytest.mark.parametrize(
    ("response", "rewards"),
    [
        ("1 + 1 </think> <answer>2</answer>", RIGHT),
        ("1 + 1 </think> <answer>3</answer>", WRONG),
        ("</think> <answer>2</answer> no, it is 3", WRONG),  # what follows belongs to the answer
        ("</think> <answer>2</answer>\n", RIGHT),
        ("</think><answer>2</answer>", UNFORMATTED),  # the one space is part of the format
        ("</think>\n<answer>2</answer>", UNFORMATTED),
        ("</think>  <answer>2</answer>", UNFORMATTED),
        ("</think>\u00a0<answer>2</answer>", UNFORMATTED),
        ("</Think> <answer>2</answer>", UNFORMATTED),
        ("</think> <answer>2", UNFORMATTED),
        ("2</answer> </think> <answer>2", RIGHT),  # order is not looked at
        ("</think> <answer>1</answer> <answer>2</answer>", RIGHT),  # the last one counts
        ("</think> <answer>2</answer><answer>", WRONG),
        ("</think> <answer>2</answer></answer>", RIGHT),
        ("</think> <answer>\\boxed{2}</answer>", RIGHT),
        ("</think> <answer>It is \\boxed{1} no \\boxed{2}.</answer>", RIGHT),
        ("</think> <answer>\\boxed{2</answer>", WRONG),
        ("</think> <answer>\\boxed {2}</answer>", WRONG),
        ("</think> <answer>\\boxed 2</answer>", WRONG),
        ("</think> <answer>\\boxed{}</answer>", WRONG),
        ("", UNFORMATTED),
        ("\\boxed{2}", UNFORMATTED),
    ],
)
@pytest.mark.parametrize("fast", [True, False])
def test_r1_zero(response: str, rewards: dict[str, float], fast: bool):
    assert r1_zero_reward_fn(response, "2", fast) == rewards


@pytest.mark.parametrize(
    ("response", "rewards"),
    [
        ("so \\boxed{2}", RIGHT),
        ("so \\boxed{3}", WRONG),
        ("\\boxed{3} then \\boxed{2}", RIGHT),
        ("\\boxed{2} then \\boxed{3}", WRONG),
        ("\\boxed{\\boxed{2}}", RIGHT),
        ("\\boxed{}", WRONG),
        ("\\boxed{2", UNFORMATTED),
        ("\\boxed 2", UNFORMATTED),
        ("\\fbox{2}", UNFORMATTED),
        ("2", UNFORMATTED),
        ("\\boxed{2} \\boxed{3", UNFORMATTED),  # the last one never closes
    ],
)
@pytest.mark.parametrize("fast", [True, False])
def test_question_only(response: str, rewards: dict[str, float], fast: bool):
    assert question_only_reward_fn(response, "2", fast) == rewards


def test_fast_is_the_default():
    assert r1_zero_reward_fn("</think> <answer>two</answer>", "2") == WRONG
    assert r1_zero_reward_fn("</think> <answer>two</answer>", "2", fast=False) == RIGHT


def test_rewards_are_floats():
    rewards = r1_zero_reward_fn("</think> <answer>2</answer>", "2")
    assert [type(value) for value in rewards.values()] == [float, float, float]


@pytest.mark.parametrize(
    ("gold", "rewards"),
    [
        (2, RIGHT),
        (2.0, RIGHT),
        (["1", "2"], RIGHT),
        (["1", "3"], WRONG),
        ([], WRONG),
        ("\\boxed{2}", RIGHT),
        ("The answer is \\boxed{2}.", RIGHT),
        ("\\boxed{2", WRONG),
        (["\\boxed{3}", "\\boxed{2}"], RIGHT),
    ],
)
def test_golds(gold, rewards):
    assert r1_zero_reward_fn("</think> <answer>2</answer>", gold) == rewards
    assert question_only_reward_fn("\\boxed{2}", gold) == rewards


@pytest.mark.parametrize("gold", [None, {"answer": "2"}, ("2",), b"2", ["2", None], [2], [["2"]], 2j])
@pytest.mark.parametrize("response", ["</think> <answer>2</answer> \\boxed{2}", "no format"])
def test_strange_golds_are_type_errors_that_name_the_type(gold, response):
    culprit = gold if not isinstance(gold, list) else next(entry for entry in gold if not isinstance(entry, str))
    for reward_fn in (r1_zero_reward_fn, question_only_reward_fn):
        with pytest.raises(TypeError, match=type(culprit).__name__):
            reward_fn(response, gold)


def test_extracted_answers():
    assert extract_answer_r1_zero("</think> <answer>a\\boxed{b{c}}</answer>") == "b{c}"
    assert extract_answer_r1_zero("</think> <answer> 2 </answer>") == " 2 "
    assert extract_answer_r1_zero("no") is None
    assert extract_answer_question_only("x \\boxed{\\{1,2\\}}") == "\\{1,2\\}"
    assert extract_answer_question_only("x") is None


def test_grades_say_which_step_decided():
    assert grade_r1_zero("no", "2").verdict.step == "unformatted"
    assert grade_r1_zero("</think> <answer>\\boxed{2</answer>", "2").verdict.step == "box not readable"
    grade = grade_question_only("\\boxed{2 \\text{ cm}}", "2")
    assert (grade.formatted, grade.answer, grade.verdict.step) == (True, "2 \\text{ cm}", "string rule")
    undecided = grade_r1_zero("</think> <answer>9^{9^{9^9}}</answer>", "2", fast=False)
    assert undecided.verdict.undecided
    assert undecided.rewards == WRONG
