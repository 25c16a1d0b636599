r"""From a response to the text of its answer: the format contract of the two prompts, exactly the course's."""

R1_ZERO_OPENING = "</think> <answer>"
R1_ZERO_CLOSING = "</answer>"


def is_r1_zero_formatted(response: str) -> bool:
    """Both tags occur, anywhere; their order and number are not looked at."""
    return R1_ZERO_OPENING in response and R1_ZERO_CLOSING in response


def extract_answer_r1_zero(response: str) -> str | None:
    r"""The answer of a formatted r1_zero response, or None (unformatted, or a `\boxed` that cannot be read).

    It is everything after the last `<answer>`, less every `</answer>`; a `\boxed` in it is opened.
    """
    if not is_r1_zero_formatted(response):
        return None
    answer = response.rpartition("<answer>")[2].replace(R1_ZERO_CLOSING, "")
    return last_boxed(answer) if "\\boxed" in answer else answer


def extract_answer_question_only(response: str) -> str | None:
    r"""The content of the last `\boxed{...}`, or None."""
    return last_boxed(response)


def last_boxed(text: str) -> str | None:
    r"""The content of the last `\boxed{...}` of a text, braces matched; None where there is none or it never closes.

    Every brace counts, escaped ones too, as in the course's grader.
    """
    start = text.rfind("\\boxed")
    opening = start + len("\\boxed")
    if start < 0 or text[opening : opening + 1] != "{":
        return None
    depth = 0
    for position in range(opening, len(text)):
        character = text[position]
        if character == "{":
            depth += 1
        elif character == "}":
            depth -= 1
            if depth == 0:
                return text[opening + 1 : position]
    return None
