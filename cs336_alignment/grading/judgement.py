"""The grader's front door: format, gold, and the verdict on the answer."""

from cs336_alignment.grading.course import judge_as_course
from cs336_alignment.grading.extraction import (
    extract_answer_question_only,
    extract_answer_r1_zero,
    is_r1_zero_formatted,
)
from cs336_alignment.grading.gold import Gold, accepted_answers
from cs336_alignment.grading.meaning import judge_by_meaning
from cs336_alignment.grading.verdict import Grade, Verdict


def grade_r1_zero(response: str, gold: Gold, fast: bool = True) -> Grade:
    """Grade a response to the r1_zero prompt.

    Args:
        response: the model's whole output.
        gold: the gold answer; a list of strings means any of them.
        fast: course-compatible verdict (True) or judged by meaning as well (False).

    Raises:
        TypeError: the gold is not a str, int, float or list of str.
    """
    accepted = accepted_answers(gold)
    if not is_r1_zero_formatted(response):
        return Grade(False, None, Verdict(False, "unformatted"))
    answer = extract_answer_r1_zero(response)
    if answer is None:
        return Grade(True, None, Verdict(False, "box not readable"))
    return Grade(True, answer, _judge_any(answer, accepted, fast))


def grade_question_only(response: str, gold: Gold, fast: bool = True) -> Grade:
    r"""Grade a response to the question_only prompt, whose format is a readable `\boxed{...}`.

    Arguments and errors as for `grade_r1_zero`.
    """
    accepted = accepted_answers(gold)
    answer = extract_answer_question_only(response)
    if answer is None:
        return Grade(False, None, Verdict(False, "unformatted"))
    return Grade(True, answer, _judge_any(answer, accepted, fast))


def judge(answer: str, gold: Gold, fast: bool = True) -> Verdict:
    """Judge a bare answer text; arguments and errors as for `grade_r1_zero`."""
    return _judge_any(answer, accepted_answers(gold), fast)


def _judge_any(answer: str, accepted: list[str], fast: bool) -> Verdict:
    verdicts = []
    for gold in accepted:
        verdict = _judge_one(answer, gold, fast)
        if verdict.equal:
            return verdict
        verdicts.append(verdict)
    if not verdicts:
        return Verdict(False, "no gold answer")
    return next((verdict for verdict in verdicts if verdict.undecided), verdicts[0])


def _judge_one(answer: str, gold: str, fast: bool) -> Verdict:
    """The course's rules, unless the meaning refutes them; then, where asked for, the meaning alone."""
    if answer.strip() == gold.strip():
        return Verdict(True, "same text")
    course = judge_as_course(answer, gold)
    if fast and not course.equal:
        return course
    meaning = judge_by_meaning(answer, gold)
    if course.equal:
        refuted = meaning is not None and not meaning.equal and not meaning.undecided
        return Verdict(False, f"{course.step}, refuted by meaning") if refuted else course
    return meaning or Verdict(False, "not understood")
