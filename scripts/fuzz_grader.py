"""Fuzz the grader with hypothesis: it answers anything in time, and its verdicts obey three laws.

    uv run python scripts/fuzz_grader.py [--minutes 10]

1. Any text against any gold answer: a verdict, no exception, within `TIME_LIMIT` seconds, in both modes.
2. Pure expressions: judge(a, b) agrees with judge(b, a).
3. A pure expression equals itself.
4. An integer with a digit 1-9 appended never equals the integer.

`tests/test_grading_fuzz.py` runs a short form of the same properties.
"""

import argparse
import random
import time
from collections.abc import Callable

from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from cs336_alignment.grading import Verdict, judge

TIME_LIMIT = 1.0
# Long texts are the point.
UNCHECKED = (HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example)

# Pieces of answers, sound and broken; repeated and joined they make texts that parsers choke on.
PIECES = """\\text{ \\text{a} { } ( ) [ ] \\left( \\right) \\frac \\frac{1}{2} \\frac1 \\sqrt{ \\sqrt[3]{ ^ ^{ _ x^ 2^
9^ ! 9! $ \\$ % \\% \\\\ \\ | ° ½ ² − \u200b \ud800 \x00 1 12 1, 1,111 1.1 .1 0.333... 1/ 1+ x+ 2* - = < <=
!= ≠ \\pm \\cup \\infty \\sin \\log_ \\binom \\sum_{n=1}^ \\begin{pmatrix} \\end{pmatrix} & \\boxed{ \\{ \\}
1e 1e9 e i π \\pi and or is answer not because hours thousand million one hundred two (a) <b> </s> <<1>> ` ** __ ' "
, ; : . ... ~ A, (B) 1:2 R mod to between cm m/s per 1{,}000 \\overline{3} \\circ {a\\over b} ####
\\begin{pmatrix}1&2\\end{pmatrix} \\dot{1} \\vec{a} \\color{red} x>1 x\\ne
\\land oo half point squared over instead of dollars cents (B)""".split()
GOLDS = """18 -7 0.5 \\frac{1}{2} x x^2+1 (1,2) \\{1,2\\} [0,1) x>5 A \\text{yes} 50\\% \\sqrt{2}""".split()


@st.composite
def texts(draw: st.DrawFn) -> str:
    """Pieces with and without spaces, sometimes one of them many times over, up to 100 kB."""
    pieces = draw(st.lists(st.sampled_from(PIECES) | st.text(max_size=5), min_size=1, max_size=25))
    text = draw(st.sampled_from(["", " "])).join(pieces)
    if draw(st.integers(0, 9)) == 0:
        length = draw(st.sampled_from([400, 4_000, 100_000]))
        text = (text * (length // max(1, len(text)) + 1))[:length]
    return text


def _applied(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    pairs = st.tuples(inner, inner)
    return st.one_of(
        pairs.map(lambda p: f"{p[0]}+{p[1]}"),
        pairs.map(lambda p: f"({p[0]})-({p[1]})"),
        pairs.map(lambda p: f"({p[0]})({p[1]})"),
        pairs.map(lambda p: f"\\frac{{{p[0]}}}{{{p[1]}}}"),
        st.tuples(inner, st.integers(0, 4)).map(lambda p: f"({p[0]})^{{{p[1]}}}"),
        inner.map(lambda e: f"\\sqrt{{{e}}}"),
        st.tuples(st.sampled_from(["sin", "cos", "ln"]), inner).map(lambda p: f"\\{p[0]}({p[1]})"),
    )


# Expressions of small numbers, decimals, three letters and π.
expressions = st.recursive(
    st.integers(0, 99).map(str)
    | st.decimals(0, 9, places=2).map(str)
    | st.sampled_from(["x", "y", "n", "\\pi", "2x", "\\frac{1}{2}"]),
    _applied,
    max_leaves=6,
)


def timed(answer: str, gold: str, fast: bool) -> tuple[Verdict, float]:
    start = time.perf_counter()
    verdict = judge(answer, gold, fast)
    return verdict, time.perf_counter() - start


def bounded(answer: str, gold: str, fast: bool) -> None:
    verdict, seconds = timed(answer, gold, fast)
    if seconds > TIME_LIMIT:
        # Once more: a stall of the machine is not the grader's.
        verdict, seconds = timed(answer, gold, fast)
    assert isinstance(verdict.equal, bool)
    assert not (verdict.equal and verdict.undecided)
    assert seconds < TIME_LIMIT, f"{seconds:.2f} s"


def symmetric(a: str, b: str, fast: bool) -> None:
    assert judge(a, b, fast).equal == judge(b, a, fast).equal


def reflexive(a: str, fast: bool) -> None:
    assert judge(a, a, fast).equal


def appended_digit_differs(number: int, digit: int, fast: bool) -> None:
    assert not judge(f"{number}{digit}", str(number), fast).equal
    assert not judge(str(number), f"{number}{digit}", fast).equal


PROPERTIES: dict[str, tuple[Callable[..., None], tuple[st.SearchStrategy, ...]]] = {
    "bounded": (bounded, (texts(), st.sampled_from(GOLDS), st.booleans())),
    "symmetric": (symmetric, (expressions, expressions, st.booleans())),
    "reflexive": (reflexive, (expressions, st.booleans())),
    "appended_digit_differs": (
        appended_digit_differs,
        (st.integers(-(10**30), 10**30), st.integers(1, 9), st.booleans()),
    ),
}


def run(name: str, examples: int, seed_value: int) -> None:
    """Run one property; raises what hypothesis finds, shrunk.

    Raises:
        AssertionError: the property does not hold; or whatever the grader raised.
    """
    check, strategies = PROPERTIES[name]

    @seed(seed_value)
    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=UNCHECKED)
    @given(st.tuples(*strategies))
    def holds(arguments: tuple) -> None:
        check(*arguments)

    holds()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=None)
    arguments = parser.parse_args()
    seeds = random.Random(arguments.seed)
    end = time.monotonic() + 60 * arguments.minutes
    examples = dict.fromkeys(PROPERTIES, 0)
    while time.monotonic() < end:
        for name in PROPERTIES:
            run(name, 200, seeds.randrange(2**32))
            examples[name] += 200
    print(f"{arguments.minutes:g} minutes, no failure:", ", ".join(f"{n} {name}" for name, n in examples.items()))


if __name__ == "__main__":
    main()
