"""From an answer as a model writes it to plain mathematics: Unicode, markup and LaTeX's typography are taken away.

What carries meaning stays. After this a text holds bare words (`\\text{or}` became ` or `) and no layout commands.
"""

import re
import unicodedata

_INVISIBLE = dict.fromkeys(map(ord, "\u200b\u200c\u200d\u2060\ufeff\u00ad\u200e\u200f"))
_CHARACTERS = str.maketrans(
    {
        "−": "-", "–": "-", "—": "-", "‒": "-", "‑": "-", "×": "*", "⋅": "*", "·": "*", "∙": "*", "÷": "/", "⁄": "/",
        "∕": "/", "≤": "\\le ", "⩽": "\\le ", "≥": "\\ge ", "⩾": "\\ge ", "≠": "\\ne ", "≈": "\\approx ",
        "∼": "\\sim ", "√": "\\sqrt ", "∛": "\\sqrt[3]", "π": "\\pi ", "θ": "\\theta ", "α": "\\alpha ", "β": "\\beta ",
        "γ": "\\gamma ", "λ": "\\lambda ", "μ": "\\mu ", "φ": "\\phi ", "ω": "\\omega ", "∞": "\\infty ",
        "∪": "\\cup ", "∩": "\\cap ", "∈": "\\in ", "±": "\\pm ", "∓": "\\mp ",
        "→": "\\to ", "⇒": "\\to ", "∴": "\\therefore ", "°": "\\degree ", "º": "\\degree ",
        "“": '"', "”": '"', "‘": "'", "’": "'", "€": "\\$", "£": "\\$", "¥": "\\$", "。": ".", "，": ",",
        "⟨": "\\langle ", "⟩": "\\rangle ", "⌊": "\\lfloor ", "⌋": "\\rfloor ", "∠": "\\angle ", "…": "...",
    }
)  # fmt: skip
_SUPERSCRIPTS = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+")
_SUBSCRIPTS = re.compile("[₀₁₂₃₄₅₆₇₈₉]+")
_VULGAR_FRACTIONS = re.compile("[¼½¾⅐-⅞]")
_ODD_SPACES = re.compile("[\u2009\u202f\u2006\u2008]")

# Tags and marks of chat models and of Markdown; double marks before single ones.
_TAGS = re.compile(r"</?[a-z]{1,10} ?/?>|<\|[^<>|]{1,30}\|>|<<[^<>]*>>|```[a-z]*|`", re.IGNORECASE)
# *emphasis*, **strong**, _emphasis_, __strong__, where the marks cannot be a product or a power.
_EMPHASIS = re.compile(r"(?<![\w)\]}*])(\*{1,3}|_{1,2})(?=[^\s*_])([^*_\n]*[^\s*_])\1(?![\w(*])")
_EDGES = " \t\r\n\"'"

_TEXT_COMMAND = re.compile(
    r"\\(?:text|textbf|textit|textrm|textsf|texttt|mathrm|mathbf|mathit|mathsf|operatorname|mbox|emph|boldsymbol|bf|rm)"
    r"\s*\{([^{}]*)\}"
)
_LAYOUT = re.compile(
    r"(?<!\\)\\(?:left|right|displaystyle|textstyle|bigl|bigr|Bigl|Bigr|big|Big|limits|rm|bf|!)(?![A-Za-z])\s*"
    r"|\\(?:begin|end)\s*\{(?:equation|align|aligned|gather|center)\*?\}"
    r"|(?<!\\)\$|(?<!\\)\\[()\[\]]"
)
_SPACE_COMMANDS = re.compile(r"(?<!\\)\\(?:quad|qquad|thinspace|,|;|:|>| )|(?<!\\)~")
_SPACE_GROUPED = re.compile(r"(?<![\d.,])\d{1,3}(?:(?:\{,\}|,\\!|\\,|'|_|[\u2009\u202f ])\d{3})+(?!\d)")
_NON_DIGITS = re.compile(r"\D")
_INFIX = re.compile(r"\{([^{}]*)\\(over|choose)(?![A-Za-z])([^{}]*)\}")
_DOTS = re.compile(r"\\(?:dots|ldots|cdots)(?![A-Za-z])")
_DEGREE = re.compile(r"\^\s*(?:\\circ|\{\s*\\circ\s*\}|\\degree)")
_TEN_TO_THE = re.compile(r"(?<=\d)(\s*)[xX](\s*)(?=10\s*\^)|(?<=\d) [xX] (?=\\?\$?\d)")
_DOLLARS = re.compile(r"\b(?:US|CA?|AU?|NZ|HK|SG?) ?\\?\$|\b(?:USD|Rs\.?)(?= ?\d)|\bUSD\b")
_COLOR = re.compile(r"\\(?:text)?color\s*(?:\{\w+\}|\w+)")
# A dot over the first and the last digit of the period: 0.\dot{1}2\dot{3}.
_DOTTED_PERIOD = re.compile(r"\\dot\s*\{?(\d)\}?(\d*)\\dot\s*\{?(\d)\}?")
_DOLLARS_AND_CENTS = re.compile(r"(?:(\\?\$ ?\d[\d,]*)|(?<![\d,.])(\d[\d,]*) dollars?),? (?:and )?(\d\d?) cents?\b")
_ARROWED = re.compile(r"\\(?:vec|hat)\s*(?:\{\s*([a-zA-Z])\s*\}|([a-zA-Z])(?![a-zA-Z]))")
_MAX_TEXT_NESTING = 4


def clean(answer: str) -> str:
    """The text in plain LaTeX and ASCII, one line. Linear in its length (which the caller bounds)."""
    text = answer if answer.isascii() else _plain_characters(answer)
    text = _TAGS.sub(" ", text) if any(mark in text for mark in "<`*_") else text
    text = text.replace("{:}", ":")
    text = _EMPHASIS.sub(r"\2", text)
    if "cent" in text:
        text = _DOLLARS_AND_CENTS.sub(_as_one_amount, text)
    if "$" in text or "USD" in text or "Rs" in text:
        text = _DOLLARS.sub(r"\\$", text)
    if "\\" in text or "$" in text or "~" in text:
        text = _plain_latex(text)
    text = _SPACE_GROUPED.sub(lambda match: _NON_DIGITS.sub("", match[0]), text)
    text = _TEN_TO_THE.sub(" * ", text)
    text = " ".join(text.split()).strip(_EDGES)
    return text[:-2].rstrip(_EDGES) if text.endswith("\\\\") else text


def _plain_characters(text: str) -> str:
    text = _VULGAR_FRACTIONS.sub(_spelled_fraction, text.translate(_INVISIBLE))
    text = _SUPERSCRIPTS.sub(lambda match: f"^{{{_ascii_digits(match[0])}}}", text)
    text = _SUBSCRIPTS.sub(lambda match: f"_{{{_ascii_digits(match[0])}}}", text)
    text = _ODD_SPACES.sub("\u2009", text).translate(_CHARACTERS)
    return "".join(_plain_character(character) for character in text)


def _plain_character(character: str) -> str:
    """Digits of every script and full-width forms become ASCII; other spaces become spaces."""
    if character.isascii() or character in "\u2009ℝ∅":
        return character
    if character.isdecimal():
        return str(unicodedata.decimal(character))
    if character.isspace():
        return " "
    folded = unicodedata.normalize("NFKC", character)
    return folded if len(folded) == 1 else character


def _ascii_digits(text: str) -> str:
    return "".join("-" if character == "⁻" else str(unicodedata.digit(character)) for character in text)


def _spelled_fraction(match: re.Match[str]) -> str:
    upper, lower = unicodedata.normalize("NFKC", match[0]).split("⁄")
    return f"\\frac{{{upper}}}{{{lower}}}"


def _as_one_amount(match: re.Match[str]) -> str:
    """ "5 dollars and 7 cents" is 5.07 dollars."""
    amount = match[1] or match[2]
    return f"{amount}.{match[3]:0>2}" + ("" if match[1] else " dollars")


def _plain_latex(text: str) -> str:
    if "color" in text:
        text = _COLOR.sub("", text)
    text = _ARROWED.sub(r" \1\2 ", text)
    if "\\dot" in text:
        text = _DOTTED_PERIOD.sub(r"\\overline{\1\2\3}", text)
    text = _SPACE_GROUPED.sub(lambda match: _NON_DIGITS.sub("", match[0]), text)
    for _ in range(_MAX_TEXT_NESTING):
        text, count = _TEXT_COMMAND.subn(r" \1 ", text)
        if not count:
            break
    text = _SPACE_COMMANDS.sub(" ", _LAYOUT.sub("", text))
    text = _DOTS.sub("...", _INFIX.sub(_as_prefix, text))
    return _DEGREE.sub(r"\\degree ", text)


def _as_prefix(match: re.Match[str]) -> str:
    r"""`{u \over v}` is `\frac{u}{v}`."""
    command = "frac" if match[2] == "over" else "binom"
    return f"\\{command}{{{match[1]}}}{{{match[3]}}}"
