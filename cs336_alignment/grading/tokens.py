"""From cleaned text to tokens."""

import re
from dataclasses import dataclass
from fractions import Fraction

from cs336_alignment.grading.bounds import (
    MAX_LITERAL_DIGITS,
    MAX_LITERAL_EXPONENT,
    MAX_NESTING,
    MAX_TOKENS,
    UndecidedError,
    UnreadableError,
)


@dataclass(frozen=True, slots=True)
class Token:
    """A piece of text.

    Attributes:
        kind: "number", "name" (a variable or constant), "function", "word", "command" (with arguments of its own) or
            "mark" (an operator, relation, bracket or separator).
        text: the canonical spelling: `\\le` and `<=` are both "≤".
        value: of a number.
        spaced: white space came before it.
    """

    kind: str
    text: str
    value: Fraction | None = None
    spaced: bool = False

    def is_mark(self, *texts: str) -> bool:
        """A mark, one of these."""
        return self.kind == "mark" and self.text in texts


_GREEK = frozenset(
    """alpha beta gamma delta epsilon varepsilon zeta eta theta iota kappa lambda mu nu xi rho sigma tau phi varphi chi
    psi omega Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega ell""".split()
)
FUNCTIONS = frozenset(
    """sin cos tan cot sec csc arcsin arccos arctan arccot sinh cosh tanh ln log exp sqrt abs floor ceil max min
    zeta""".split()
)
_FUNCTION_ALIASES = {"asin": "arcsin", "acos": "arccos", "atan": "arctan", "cosec": "csc", "tg": "tan", "lg": "log"}
# Commands and words that read as another spelling; the empty one vanishes.
_MARK_COMMANDS = {
    "times": "*", "cdot": "*", "div": "/", "pm": "±", "mp": "∓", "le": "≤", "leq": "≤", "leqslant": "≤", "ge": "≥",
    "geq": "≥", "geqslant": "≥", "ne": "≠", "neq": "≠", "lt": "<", "gt": ">", "approx": "≈", "sim": "≈", "in": "∈",
    "cup": "∪", "setminus": "∖", "backslash": "∖", "mid": "|", "vert": "|", "lvert": "|", "rvert": "|",
    "langle": "⟨", "rangle": "⟩", "lfloor": "⌊", "rfloor": "⌋", "lceil": "⌈", "rceil": "⌉", "colon": ":",
    "to": "→", "rightarrow": "→", "Rightarrow": "→", "implies": "→", "therefore": "→", "degree": "°", "prime": "'",
    "percent": "%", "lbrace": "\\{", "rbrace": "\\}", "lbrack": "[", "rbrack": "]", "equiv": "=", "iff": "→",
    "dollar": "¤", "textdollar": "¤", "land": "and", "wedge": "and", "lor": "or", "vee": "or",
}  # fmt: skip
_FRACTIONS = frozenset({"frac", "dfrac", "tfrac", "cfrac"})
_BINOMIALS = frozenset({"binom", "dbinom", "tbinom", "choose"})
_WORD_MARKS = {"percent": "%", "infinity": "∞", "inf": "∞", "oo": "∞", "pi": "π", "or": "or", "and": "and"}

_TOKEN = re.compile(
    r"""
    (?P<space>\s+)
    |(?P<repeating>(?P<whole>\d*)\.(?P<fixed>\d*)(?:\\overline|\\bar|\\dot)\s*\{?(?P<period>\d+)\}?)
    |(?P<whole_dots>\d*)\.(?P<fixed_dots>\d{0,6}?)(?P<period_dots>\d{1,6}?)(?P=period_dots)+\.\.\.
    |(?P<whole_brackets>\d*)\.\((?P<period_brackets>\d+)\)
    |(?P<number>(?:\d+(?:\.\d+)?|\.\d+)(?:[eE][+-]?\d+(?![\dA-Za-z.]))?)
    |\\begin\s*\{(?P<begin>[a-zA-Z]+)\*?\}(?:\{[^{}]*\})?|\\end\s*\{(?P<end>[a-zA-Z]+)\*?\}
    |\\mathbb\s*\{?(?P<field>[A-Z])\}?
    |(?P<symbol>[ℝ∅])
    |\\(?P<command>[A-Za-z]+)
    |\\(?P<escaped>[{}%$|\\&_\#])
    |(?P<letters>[A-Za-z]+)
    |(?P<mark>\*\*|<=|>=|!=|=>|->|==|[-+*/^_!=<>,;:|()\[\]{}&%'])
    """,
    re.VERBOSE,
)
_GROUPED_NUMBER = re.compile(r"\d{1,3}(?:,\d{3})+(?![\d,])(?:\.\d+)?")
_PLAIN_MARKS = {"**": "^", "<=": "≤", ">=": "≥", "!=": "≠", "=>": "→", "->": "→", "==": "="}
_ESCAPED_MARKS = {"{": "\\{", "}": "\\}", "%": "%", "$": "¤", "|": "|", "\\": "\\\\", "&": "&"}
_OPENING, _CLOSING = ("(", "[", "{", "\\{"), (")", "]", "}", "\\}")
_BRACKET_DEPTH = {"(": 1, "[": 1, "\\{": 1, ")": -1, "]": -1, "\\}": -1}


def tokenize(text: str, bare_letters: bool = False) -> list[Token]:
    """The tokens of a cleaned text.

    Args:
        text: as `cleaning.clean` leaves it.
        bare_letters: read every run of letters as a product of variables (but `sqrt` and `pi`), never as words.

    Raises:
        UnreadableError: a character or command that has no meaning here.
        UndecidedError: too many tokens, or a number too long.
    """
    tokens: list[Token] = []
    position, depth, nesting, spaced = 0, 0, 0, False
    while position < len(text):
        # In brackets a comma separates elements: (1,234) is a pair, 1,234 a number.
        match = (depth <= 0 and _GROUPED_NUMBER.match(text, position)) or _TOKEN.match(text, position)
        if match is None:
            raise UnreadableError(text[position])
        position = match.end()
        if match.re is _TOKEN and match["space"]:
            spaced = True
            continue
        for token in _tokens_of(match, bare_letters):
            tokens.append(Token(token.kind, token.text, token.value, spaced))
            depth += _BRACKET_DEPTH.get(token.text, 0) if token.kind == "mark" else 0
            nesting += token.text in _OPENING
            nesting -= token.text in _CLOSING
            spaced = False
        if len(tokens) > MAX_TOKENS or nesting > MAX_NESTING:
            raise UndecidedError
    return tokens


def _tokens_of(match: re.Match[str], bare_letters: bool) -> list[Token]:
    if match.re is _GROUPED_NUMBER:
        return [_number(match[0].replace(",", ""))]
    if match["number"]:
        return [_number(match[0])]
    for form in ("", "_dots", "_brackets"):
        if period := match[f"period{form}"]:
            fixed = "" if form == "_brackets" else match[f"fixed{form}"]
            return [_repeating_decimal(match[f"whole{form}"], fixed, period)]
    if match["begin"] or match["end"]:
        return [Token("command", ("begin " if match["begin"] else "end ") + (match["begin"] or match["end"]))]
    if match["field"]:
        return [Token("name", "ℝ" if match["field"] == "R" else "\\" + match["field"])]
    if match["symbol"]:
        return [Token("name", match["symbol"])]
    if match["letters"]:
        return _letters(match["letters"], bare_letters)
    if match["command"]:
        return [_command(match["command"])]
    text = match[0]
    mark = _PLAIN_MARKS.get(text, text) if match["mark"] else _ESCAPED_MARKS.get(match["escaped"])
    if mark is None:
        raise UnreadableError(text)
    return [Token("mark", mark)]


def _number(text: str) -> Token:
    mantissa, _, exponent = text.lower().partition("e")
    if len(mantissa) > MAX_LITERAL_DIGITS or len(exponent) > 6 or abs(int(exponent or 0)) > MAX_LITERAL_EXPONENT:
        raise UndecidedError
    return Token("number", text, Fraction(text))


def _repeating_decimal(whole: str, fixed: str, period: str) -> Token:
    if len(whole) + len(fixed) + len(period) > MAX_LITERAL_DIGITS:
        raise UndecidedError
    scale = 10 ** len(fixed)
    value = Fraction(int(whole or 0) * scale + int(fixed or 0), scale)
    return Token("number", "repeating", value + Fraction(int(period), scale * (10 ** len(period) - 1)))


def _command(name: str) -> Token:
    if name in _MARK_COMMANDS:
        return Token("mark", _MARK_COMMANDS[name])
    if name in _FRACTIONS or name in _BINOMIALS:
        return Token("command", "frac" if name in _FRACTIONS else "binom")
    if name in ("sqrt", "sum"):
        return Token("command", name)
    name = _FUNCTION_ALIASES.get(name, name)
    if name in FUNCTIONS:
        return Token("function", name)
    if name in _GREEK:
        return Token("name", name)
    special = {
        "pi": Token("name", "π"),
        "infty": Token("name", "∞"),
        "emptyset": Token("name", "∅"),
        "varnothing": Token("name", "∅"),
        "pmod": Token("word", "mod"),
        "bmod": Token("word", "mod"),
        "mod": Token("word", "mod"),
        "angle": Token("word", "angle"),
    }
    if name not in special:
        raise UnreadableError(name)
    return special[name]


def _letters(letters: str, bare_letters: bool) -> list[Token]:
    """A run of letters: a function, a constant's name, a word, or a product of variables (`ab`, `xy`)."""
    if bare_letters:
        return [_bare(piece) for piece in re.findall("sqrt|pi|[A-Za-z]", letters)]
    lowered = letters.lower()
    if len(letters) == 1:
        return [Token("name", letters)]
    letters = _FUNCTION_ALIASES.get(letters, letters)
    if letters in FUNCTIONS:
        return [Token("function", letters)]
    if letters in _GREEK:
        return [Token("name", letters)]
    if lowered in _WORD_MARKS:
        text = _WORD_MARKS[lowered]
        return [Token("name" if text in "∞π" else "mark", text)]
    if letters[:-1] in FUNCTIONS and letters[-1] in "xyz":
        return [Token("function", letters[:-1]), Token("name", letters[-1])]
    if len(letters) > 2 or lowered in SHORT_WORDS:
        return [Token("word", lowered)]
    return [Token("name", letter) for letter in letters]


def _bare(piece: str) -> Token:
    if piece == "sqrt":
        return Token("function", "sqrt")
    # The course's letters are all variables, i and e too.
    return Token("name", "π" if piece == "pi" else f"{piece}_")


# Runs of two letters that are words or units, not products.
SHORT_WORDS = frozenset(
    "of to is in at by on as it so no we he an be cm mm km kg mg ml ft lb oz yd mi hr am pm gb mb kb sq cu".split()
)
