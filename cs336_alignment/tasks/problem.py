"""The record that every question-answering task yields."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """One question with its gold answer.

    Attributes:
        question: the text that goes into the prompt template.
        gold: the gold answer, for instance "1234": no thousands commas, no unit.
        rationale: the worked solution without final answer line and calculator marks; "" where there is none.
    """

    question: str
    gold: str
    rationale: str = ""
