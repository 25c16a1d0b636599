"""The course-compatible verdict: its rules, in its order, each a named step."""

from cs336_alignment.grading.bounds import MAX_NORMALISED_CHARACTERS, UndecidedError
from cs336_alignment.grading.elements import same_elements
from cs336_alignment.grading.normal_form import normalise
from cs336_alignment.grading.string_rule import clean_string
from cs336_alignment.grading.verdict import Verdict


def judge_as_course(answer: str, gold: str) -> Verdict:
    """The verdict of the course's grader on an answer text."""
    if clean_string(answer) == clean_string(gold):
        return Verdict(True, "string rule")
    if max(len(answer), len(gold)) > MAX_NORMALISED_CHARACTERS:
        return Verdict(False, "too long to normalise", undecided=True)
    normal_answer, normal_gold = normalise(answer), normalise(gold)
    if normal_answer and normal_answer == normal_gold:
        return Verdict(True, "normal form")
    try:
        if same_elements(normal_answer, normal_gold):
            return Verdict(True, "elements")
    except (UndecidedError, RecursionError):
        return Verdict(False, "elements beyond bounds", undecided=True)
    return Verdict(False, "no rule")
