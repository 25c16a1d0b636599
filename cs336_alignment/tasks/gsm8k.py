"""GSM8K (Cobbe et al. 2021): 7,473 training and 1,319 test problems, MIT licence.

Files are JSON lines of `question` and `answer`; the answer ends in `#### N` and holds calculator marks such as
`<<48/2=24>>`. `scripts/prepare_gsm8k.py` downloads them. The embedded arithmetic set has the same schema.
"""

import re
from pathlib import Path
from typing import Any

from cs336_alignment.tasks.json_lines import read_json_lines, text_field
from cs336_alignment.tasks.problem import Problem

_CALCULATOR_MARK = re.compile(r"<<[^<>]*>>")
_FINAL_ANSWER = re.compile(r"\n?####\s*(.+?)\s*$")
_PLAIN_NUMBER = re.compile(r"-?\d+(\.\d+)?")
# A minus is a sign unless it follows a letter, a digit or a closing bracket, where it subtracts (or hyphenates).
_NUMBER_IN_TEXT = re.compile(
    r"(?P<sign>(?<![\w)\]%])[-−])?"
    r"\$?"
    r"(?P<digits>(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)"
)


def load_problems(path: str | Path) -> list[Problem]:
    """Read a JSON-lines file in GSM8K's schema, in file order.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a line is not a JSON object with text fields `question` and `answer`, or its answer has no final
            number; the message names the file and the line.
    """
    return read_json_lines(path, _problem)


def parse_answer(answer: str) -> tuple[str, str]:
    """Split an `answer` field into (gold, rationale).

    Raises:
        ValueError: the text does not end in `#### N`.
    """
    final = _FINAL_ANSWER.search(answer)
    if final is None:
        raise ValueError("the answer does not end in '#### <number>'")
    gold = final[1].replace(",", "")
    if not _PLAIN_NUMBER.fullmatch(gold):
        raise ValueError(f"the final answer {final[1]!r} is not a number")
    return gold, _CALCULATOR_MARK.sub("", answer[: final.start()]).strip()


def _problem(row: dict[str, Any]) -> Problem:
    gold, rationale = parse_answer(text_field(row, "answer"))
    return Problem(text_field(row, "question"), gold, rationale)


def parse_gsm8k_response(model_output: str) -> str | None:
    """The last number in a model's output, as plain digits; None where there is no number in digits.

    "72 clips" -> "72", "1,234" -> "1234", "-3.5" -> "-3.5", "$18.00." -> "18.00", "48-24" -> "24", "none" -> None

    Source: the supplementary handout, problem gsm8k_baseline.
    """
    numbers = list(_NUMBER_IN_TEXT.finditer(model_output))
    if not numbers:
        return None
    last = numbers[-1]
    return ("-" if last["sign"] else "") + last["digits"].replace(",", "")
