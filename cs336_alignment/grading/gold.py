"""What a gold answer may be."""

from cs336_alignment.grading.extraction import last_boxed

Gold = str | int | float | list[str]


def accepted_answers(gold: Gold) -> list[str]:
    r"""The texts that a gold answer stands for: usually one; a list means any of them.

    A gold with `\boxed` is opened; one whose box never closes accepts nothing.

    Raises:
        TypeError: the gold is not a str, int, float or list of str. (A list of numbers is one too, as in the course's
            grader: whether "18.0" was meant by 18 is for the caller to say.)
    """
    if isinstance(gold, str):
        texts = [gold]
    elif isinstance(gold, int | float):
        texts = [str(gold)]
    elif isinstance(gold, list):
        for entry in gold:
            if not isinstance(entry, str):
                raise TypeError(f"a list of gold answers holds str only, not {type(entry).__name__}: {entry!r:.80}")
        texts = gold
    else:
        raise TypeError(f"a gold answer is a str, int, float or list of str, not {type(gold).__name__}: {gold!r:.80}")
    opened = [last_boxed(text) if "\\boxed" in text else text for text in texts]
    return [text for text in opened if text is not None]
