"""The prompt templates, as package data, and the one way to fill them.

`r1_zero` and `question_only` are the course's two evaluation prompts, `alpaca_sft` the Stanford Alpaca template without
input, `zero_shot_system_prompt` the chat-like prompt of the optional part. Each file holds a template and nothing else,
so that its sha256 identifies the prompt of a run.
"""

import hashlib
import re
from importlib.resources import files

_FIELD = re.compile(r"\{(question|instruction|response)\}")


def load_template(name: str) -> str:
    """The text of `prompts/<name>.prompt`, byte for byte.

    Raises:
        ValueError: no template has that name; the message lists those there are.
    """
    path = files("cs336_alignment.prompts") / f"{name}.prompt"
    if not path.is_file():
        known = sorted(entry.name for entry in files("cs336_alignment.prompts").iterdir())
        known = [file.removesuffix(".prompt") for file in known if file.endswith(".prompt")]
        raise ValueError(f"no prompt template named {name!r}; choose one of {', '.join(known)}")
    return path.read_text(encoding="utf-8")


def fill(template: str, **fields: str) -> str:
    """Put `question`, `instruction` or `response` into a template, in one pass.

    Not `str.format`: braces in a question, as in `\\frac{1}{2}`, must come through unchanged, and so must a literal
    `{response}` inside an instruction.

    Raises:
        ValueError: the template has a field that was not given.
    """

    def value(match: re.Match[str]) -> str:
        if match[1] not in fields:
            raise ValueError(f"the template needs a value for {{{match[1]}}}")
        return fields[match[1]]

    return _FIELD.sub(value, template)


def alpaca_template() -> str:
    """The Alpaca template as the functions use it: without the final newline that the file carries."""
    return load_template("alpaca_sft").removesuffix("\n")


def sha256(template: str) -> str:
    """The hex digest that run records carry to say which prompt was used."""
    return hashlib.sha256(template.encode("utf-8")).hexdigest()
