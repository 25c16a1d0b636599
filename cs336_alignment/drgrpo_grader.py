"""The handout's reward functions, thin over `cs336_alignment.grading` (which says how a verdict comes about).

`fast=True` gives the course grader's verdicts, except where that one accepts a wrong answer, hangs or crashes;
`fast=False` also accepts answers that mean the same. See docs/grading.md.
"""

from cs336_alignment.grading import Gold, grade_question_only, grade_r1_zero


def r1_zero_reward_fn(response: str, ground_truth: Gold, fast: bool = True) -> dict[str, float]:
    """Rewards of a response to the r1_zero prompt, which should end in `</think> <answer> ... </answer>`.

    Args:
        response: the model's whole output.
        ground_truth: the gold answer; a list of strings means any of them.
        fast: course-compatible verdict (True) or judged by meaning as well (False).

    Returns:
        `format_reward`, `answer_reward` and `reward`, each 0.0 or 1.0.

    Raises:
        TypeError: the gold is not a str, int, float or list of str.
    """
    return grade_r1_zero(response, ground_truth, fast).rewards


def question_only_reward_fn(response: str, ground_truth: Gold, fast: bool = True) -> dict[str, float]:
    r"""Rewards of a response to the question_only prompt, which should hold its answer in `\boxed{...}`.

    Arguments, returns and errors as for `r1_zero_reward_fn`.
    """
    return grade_question_only(response, ground_truth, fast).rewards
