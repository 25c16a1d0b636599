"""GSM8K (Cobbe et al. 2021): 7,473 training and 1,319 test problems, MIT licence.

Files are JSON lines of `question` and `answer`; the answer ends in `#### N` and holds calculator marks such as
`<<48/2=24>>`. `scripts/prepare_gsm8k.py` downloads them. The embedded arithmetic set has the same schema.
"""

import json
import re
from pathlib import Path

from cs336_alignment.tasks.problem import Problem

_CALCULATOR_MARK = re.compile(r"<<[^<>]*>>")
_FINAL_ANSWER = re.compile(r"\n?####\s*(.+?)\s*$")


def parse_answer(answer: str) -> tuple[str, str]:
    """Split an `answer` field into (gold, rationale).

    Raises:
        ValueError: the text does not end in `#### N`.
    """
    final = _FINAL_ANSWER.search(answer)
    if final is None:
        raise ValueError("the answer does not end in '#### <number>'")
    gold = final[1].replace(",", "")
    if not re.fullmatch(r"-?\d+(\.\d+)?", gold):
        raise ValueError(f"the final answer {final[1]!r} is not a number")
    rationale = _CALCULATOR_MARK.sub("", answer[: final.start()])
    return gold, rationale.strip()


def load_problems(path: str | Path) -> list[Problem]:
    """Read a JSON-lines file in GSM8K's schema, in file order.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a line is not a JSON object with string `question` and `answer`, or its answer has no final number;
            the message names the file and the line.
    """
    problems = []
    with Path(path).open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise ValueError("not a JSON object")
                missing = [field for field in ("question", "answer") if not isinstance(row.get(field), str)]
                if missing:
                    raise ValueError(f"no text field {' and '.join(map(repr, missing))}")
                gold, rationale = parse_answer(row["answer"])
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}") from error
            problems.append(Problem(row["question"], gold, rationale))
    return problems
