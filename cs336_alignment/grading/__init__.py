"""The math grader: text in, verdict out; bounded work, nothing is ever evaluated as code.

Reading order: `verdict` (the records), `extraction` (the format contract), `gold`, `judgement` (the order of the
steps), `course` (string_rule, normal_form, elements), `meaning` (cleaning, tokens, parser, reader, compare, prose).
docs/grading.md tells how a verdict comes about.

    grade_r1_zero(response, gold, fast) -> Grade          formatted?, the answer text, its Verdict, the rewards
    grade_question_only(response, gold, fast) -> Grade
    judge(answer, gold, fast) -> Verdict                  the same for a bare answer text
    extract_answer_r1_zero(response), extract_answer_question_only(response) -> str | None
    grade_batch(responses, golds, reward_fn, workers) -> list[GradedItem]

Importing this package is its warm-up: after it every call is bounded. It imports neither torch nor sympy.
"""

from cs336_alignment.grading.batch import GradedItem, grade_batch
from cs336_alignment.grading.extraction import (
    extract_answer_question_only,
    extract_answer_r1_zero,
    is_r1_zero_formatted,
)
from cs336_alignment.grading.gold import Gold
from cs336_alignment.grading.judgement import grade_question_only, grade_r1_zero, judge
from cs336_alignment.grading.verdict import Grade, Verdict

__all__ = [
    "Gold",
    "Grade",
    "GradedItem",
    "Verdict",
    "extract_answer_question_only",
    "extract_answer_r1_zero",
    "grade_batch",
    "grade_question_only",
    "grade_r1_zero",
    "is_r1_zero_formatted",
    "judge",
]
