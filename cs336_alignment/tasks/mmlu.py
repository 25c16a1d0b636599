"""MMLU (Hendrycks et al. 2021): multiple-choice questions with the options A to D."""

import re
from collections.abc import Mapping
from typing import Any

# "answer is B", "Answer: (B)", "answer to the question should be B", "the correct option is $\\boxed{B}$"; any case for
# the words, a capital for the letter.
_STATED = re.compile(
    r"(?i:answer|option|choice)\s*(?i:(?:to|for) [^.:\n]{1,60}?(?=[\s:]))?\s*"
    r"(?:(?i:is|(?:would|should|must) be|:)\s*)+(?i:option\s+|choice\s+)?"
    r"""[$"'(\[{]*(?:\\boxed\{)?([A-D])\b(?!['’]\w)"""
)
# The output opens with the letter; beside it only punctuation, the end, or a verdict: "B", "(B) one", "B is correct".
_LEADING = re.compile(
    r"\s*(?:(?i:option|choice)\s+)?[(\[]?([A-D])(?:\s*$|[.):,\]]|\s+is\s+(?:the\s+)?(?:correct|right|answer))"
)


def parse_mmlu_response(mmlu_example: Mapping[str, Any], model_output: str) -> str | None:
    """The option letter that a model's output settles on, or None where it names none.

    In this order: the last "answer is X" in the text; a letter that opens the output; the text of exactly one option
    as the whole output.

    Args:
        mmlu_example: `subject`, `question`, `options` (four texts), `answer` (the gold letter).
        model_output: what the model wrote.

    Source: the supplementary handout, problem mmlu_baseline.
    """
    text = model_output.replace("*", "")  # bold marks
    stated = _STATED.findall(text)
    if stated:
        return stated[-1]
    leading = _LEADING.match(text)
    if leading:
        return leading[1]
    bare = text.strip().rstrip(".").casefold()
    matching = [
        letter
        for letter, option in zip("ABCD", mmlu_example["options"], strict=True)
        if option.strip().rstrip(".").casefold() == bare
    ]
    return matching[0] if len(matching) == 1 else None
