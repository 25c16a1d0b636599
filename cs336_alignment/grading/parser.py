r"""From tokens to an expression: a recursive-descent parser for the mathematics that people write as an answer.

sum      = ["+" | "-" | "±"] product (("+" | "-" | "±" | "∓") product)*
product  = power (("*" | "/" | nothing) power)*         read from the left: 1/2x is x/2
power    = atom ["^" exponent] | atom "!" | atom "°"
atom     = number | mixed number | name | \frac | \sqrt | function | ( sum ) | |sum| | ⌊sum⌋
"""

from fractions import Fraction

from cs336_alignment.grading.bounds import MAX_NESTING, UndecidedError, UnreadableError
from cs336_alignment.grading.expression import Apply, Expression, Number, Symbol
from cs336_alignment.grading.tokens import Token

_END = Token("mark", "")
_CLOSING = {"(": ")", "[": "]", "{": "}", "⌊": "⌋", "⌈": "⌉"}
_SEVERAL_ARGUMENTS = frozenset({"max", "min"})
_DEGREE = Apply("/", (Symbol("π"), Number(Fraction(180))))
_INVERSES = {"sin": "arcsin", "cos": "arccos", "tan": "arctan", "cot": "arccot"}


def parse(tokens: list[Token]) -> Expression:
    """Parse all the tokens as one expression.

    Raises:
        UnreadableError: they are not one.
        UndecidedError: nested too deeply.
    """
    parser = _Parser(tokens)
    expression = parser.sum()
    if parser.here is not _END:
        raise UnreadableError(parser.here.text)
    return expression


class _Parser:
    def __init__(self, tokens: list[Token]) -> None:
        self._tokens = tokens
        self._position = 0
        self._nesting = 0
        self._open_bars = 0

    @property
    def here(self) -> Token:
        return self._tokens[self._position] if self._position < len(self._tokens) else _END

    def _next(self) -> Token:
        token = self.here
        if token is _END:
            raise UnreadableError("end")
        self._position += 1
        return token

    def _take(self, *marks: str) -> str | None:
        """Step over the next token if it is one of these marks."""
        if not self.here.is_mark(*marks):
            return None
        return self._next().text

    def _expect(self, mark: str) -> None:
        if self._take(mark) is None:
            raise UnreadableError(f"{mark} is missing")

    def sum(self) -> Expression:
        terms = [self._signed(self._take("+", "-", "±", "∓"))]
        while sign := self._take("+", "-", "±", "∓"):
            terms.append(self._signed(sign))
        return terms[0] if len(terms) == 1 else Apply("+", tuple(terms))

    def _signed(self, sign: str | None) -> Expression:
        flips = 0
        while more := self._take("+", "-"):
            flips += more == "-"
        term = self._product()
        if flips % 2:
            term = Apply("neg", (term,))
        if sign in ("±", "∓"):
            return Apply(sign, (term,))
        return Apply("neg", (term,)) if sign == "-" else term

    def _product(self) -> Expression:
        factors = [self._power()]
        while True:
            was_number = self._just_read_number()
            if operator := self._take("*", "/"):
                sign = self._take("+", "-")
                factor = self._power()
                factor = Apply("neg", (factor,)) if sign == "-" else factor
                factors.append(Apply("inverse", (factor,)) if operator == "/" else factor)
            elif self._starts_factor():
                if was_number and self.here.kind == "number":
                    raise UnreadableError("two numbers side by side")
                factors.append(self._power())
            else:
                # One flat product, so that a long one does not make a deep tree.
                return factors[0] if len(factors) == 1 else Apply("*", tuple(factors))

    def _just_read_number(self) -> bool:
        return self._tokens[self._position - 1].kind == "number" and not (
            self._position > 1 and self._tokens[self._position - 2].is_mark("^")
        )

    def _starts_factor(self) -> bool:
        token = self.here
        if token.kind in ("number", "name", "function"):
            return True
        if token.kind == "command":
            return token.text in ("frac", "sqrt", "binom", "sum")
        return token.is_mark("(", "[", "{", "⌊", "⌈") or (token.is_mark("|") and not self._open_bars)

    def _power(self) -> Expression:
        base = self._atom()
        for _ in range(MAX_NESTING):
            if self._take("!"):
                base = Apply("!", (base,))
            elif self._take("^"):
                base = Apply("^", (base, self._exponent()))
            elif self._take("°"):
                base = Apply("*", (base, _DEGREE))
            elif self._take("'"):
                raise UnreadableError("a derivative")
            else:
                return base
        raise UndecidedError

    def _exponent(self) -> Expression:
        self._descend()
        negative = self._take("+", "-") == "-"
        exponent = self._atom()
        if self._take("^"):
            exponent = Apply("^", (exponent, self._exponent()))
        self._nesting -= 1
        return Apply("neg", (exponent,)) if negative else exponent

    def _descend(self) -> None:
        """Every recursion passes through here; `_nesting` goes down again on the way back."""
        self._nesting += 1
        if self._nesting > MAX_NESTING:
            raise UndecidedError

    def _atom(self) -> Expression:
        self._descend()
        atom = self._bare_atom()
        self._nesting -= 1
        return atom

    def _bare_atom(self) -> Expression:
        token = self._next()
        if token.kind == "number":
            return self._number_or_mixed(token)
        if token.kind == "name":
            return self._subscripted(token)
        if token.kind == "function":
            return self._function(token.text)
        if token.is_mark("|"):
            self._open_bars += 1
            inside = self.sum()
            self._open_bars -= 1
            self._expect("|")
            return Apply("abs", (inside,))
        if token.kind == "mark" and token.text in _CLOSING:
            return self._bracketed(token.text)
        if token.kind == "command" and token.text in ("frac", "binom"):
            upper, lower = self._argument(), self._argument()
            return Apply("/" if token.text == "frac" else "binom", (upper, lower))
        if token.kind == "command" and token.text == "sqrt":
            return self._root()
        if token.kind == "command" and token.text == "sum":
            return self._sum_over_index()
        raise UnreadableError(token.text)

    def _bracketed(self, opening: str) -> Expression:
        open_bars, self._open_bars = self._open_bars, 0
        inside = self.sum()
        self._expect(_CLOSING[opening])
        self._open_bars = open_bars
        return Apply({"⌊": "floor", "⌈": "ceil"}[opening], (inside,)) if opening in "⌊⌈" else inside

    def _number_or_mixed(self, token: Token) -> Expression:
        r"""`4\frac{2}{7}` and `4 2/7` are mixed numbers; `4\frac{x}{7}` is a product."""
        assert token.value is not None
        fraction = self._fraction_ahead() if token.text.isdecimal() else None
        if fraction is None:
            return Number(token.value)
        value, length = fraction
        self._position += length
        return Number(token.value + value)

    def _fraction_ahead(self) -> tuple[Fraction, int] | None:
        """The value and token count of a fraction of whole numbers that starts here, written in any of three ways."""
        texts = [token.text for token in self._tokens[self._position : self._position + 7]]
        match texts:
            case ["frac", "{", upper, "}", "{", lower, "}"]:
                length = 7
            case ["frac", digits, *_] if digits.isdecimal() and len(digits) == 2:
                upper, lower, length = digits[0], digits[1], 2
            case [upper, "/", lower, *_]:
                length = 3
            case _:
                return None
        if not (upper.isdecimal() and lower.isdecimal() and int(lower)):
            return None
        return Fraction(int(upper), int(lower)), length

    def _subscripted(self, token: Token) -> Expression:
        name = token.text
        if self._take("_"):
            grouped = self._take("{")
            name += "_" + self._next().text
            while grouped and not self._take("}"):
                name += self._next().text
        return Symbol(name)

    def _argument(self) -> Expression:
        """The argument of a command: a group, or what one character stands for."""
        if self._take("{"):
            return self._bracketed("{")
        token = self.here
        if token.kind == "number" and token.text.isdecimal() and len(token.text) > 1:
            # \frac12 takes one digit at a time.
            self._tokens = self._tokens.copy()
            self._tokens[self._position] = Token("number", token.text[1:], Fraction(int(token.text[1:])))
            return Number(Fraction(int(token.text[0])))
        return self._atom()

    def _root(self) -> Expression:
        degree = None
        if self._take("["):
            degree = self.sum()
            self._expect("]")
        argument = self._group() if self.here.is_mark("{", "(") else self._atom()
        return Apply("sqrt", (argument,)) if degree is None else Apply("root", (argument, degree))

    def _sum_over_index(self) -> Expression:
        r"""`\sum_{n=1}^{9} n^2`: the body is the product that follows."""
        self._expect("_")
        self._expect("{")
        index = self._next()
        if index.kind != "name":
            raise UnreadableError(index.text)
        self._expect("=")
        low = self._bracketed("{")
        self._expect("^")
        high = self._exponent()
        return Apply("sum", (self._product(), Symbol(index.text), low, high))

    def _group(self) -> Expression:
        return self._bracketed(self._next().text)

    def _function(self, name: str) -> Expression:
        base, exponent = None, None
        while mark := self._take("_", "^"):
            if mark == "_":
                base = self._argument()
            else:
                exponent = self._exponent()
        if exponent == Apply("neg", (Number(Fraction(1)),)) and name in _INVERSES:
            name, exponent = _INVERSES[name], None
        call = Apply(name, self._function_arguments(name))
        if name == "log" and base is not None:
            # The base e makes the natural logarithm; any other divides.
            call = Apply("/", (Apply("ln", call.arguments), Apply("ln", (base,))))
        elif base is not None:
            raise UnreadableError(f"{name} with a subscript")
        return call if exponent is None else Apply("^", (call, exponent))

    def _function_arguments(self, name: str) -> tuple[Expression, ...]:
        r"""`\sin(x)`, `\sin 2x`: without brackets the argument runs on through what stands side by side."""
        if name in _SEVERAL_ARGUMENTS and (opening := self._take("(", "\\{")):
            arguments = [self.sum()]
            while self._take(","):
                arguments.append(self.sum())
            self._expect(")" if opening == "(" else "\\}")
            return tuple(arguments)
        if self.here.is_mark("(", "[", "{"):
            return (self._group(),)
        factors = [self._power()]
        while self._starts_factor() and self.here.kind != "function" and not self.here.is_mark("("):
            factors.append(self._power())
        return (factors[0] if len(factors) == 1 else Apply("*", tuple(factors)),)
