"""Rule by rule, what a rule accepts beside what it must not: forms a fresh hand-labelled set showed missing."""

import pytest

from cs336_alignment.grading import judge

# rule: (gold answer, texts that are the same answer, texts that are not)
RULES: dict[str, tuple[str, list[str], list[str]]] = {
    "a denied number is no answer": (
        "18",
        ["Not 19 but 18", "18 instead of 19", "It cannot be 19, it is 18.", "19 cannot be right; 18"],
        [
            "The answer cannot be 18", "It can't be 18.", "not quite 18", "nowhere near 18", "19 instead of 18",
            "18 cannot be right", "18\\text{ is the wrong answer}", "18 isn't it",
        ],
    ),
    "nor is a bound or one of several": (
        "16",
        ["16 miles over 2 days", "16 more than before", "The score is 16 out of 20.", "It is 16 or so"],
        [
            "over 16", "It is just over 16.", "16 or more", "16 or less", "16 at most", "16 apples or more",
            "The answer is 16 or maybe 20.",
        ],
    ),
    "what a number is for is a circumstance, unless it is money": (
        "20",
        ["He needs 20 dollars for 4 friends.", "She sells it for 20 dollars.", "20 points out of 100"],
        ["He needs 4 dollars for 20 friends."],
    ),
    "verbs between two numbers make no compound": (
        "12", ["Originally 20, minus 8 leaves 12."], ["12 hours 8 minutes", "12 dollars and 8 cents"],
    ),
    "dollars and cents are one amount": (
        "7.05",
        ["7 dollars and 5 cents", "$7 and 5 cents", "7 dollars 5 cents"],
        ["75 cents", "7 dollars and 50 cents"],
    ),
    "fractions in words": (
        "0.5", ["half", "half an hour", "a half", "one half"], ["half a million", "a quarter", "five"],
    ),
    "mixed numbers in words": (
        "2.75", ["two and three quarters", "2 and 3/4", "two point seven five"], ["two", "two point five", "2 and 3"],
    ),
    "a half of a scale": (
        "2500000", ["two and a half million", "2 and a half million", "$2.5M", "2.5M"], ["half a million", "2.5m"],
    ),
    "a unit of one letter stands apart": ("15", ["15 m", "15 L"], ["15m", "15x", "15M", "15k", "m15"]),
    "powers in words": ("256", ["16 squared"], ["16", "16 cubed"]),
    "a rate with an article": ("12", ["12 a day", "12 an hour", "12 apples a day"], ["12 a"]),
    "a line break at the end": ("85", ["85 \\\\", "85\\\\"], []),
    "a residue is reduced": ("5", ["5 \\pmod{7}", "5 mod 7"], ["5 mod 2", "12 mod 7"]),
    "conditions joined by and": (
        "(2,5)",
        ["x>2 \\text{ and } x<5", "x<5, x>2", "2<x \\land x<5"],
        ["x>2 \\text{ or } x<5", "x<2 \\text{ and } x>5", "x\\ge 2 \\text{ and } x<5", "x>2"],
    ),
    "the pieces of a range": (
        "(-\\infty,2)\\cup(5,\\infty)",
        ["x<2 \\text{ or } x>5", "x<2, x>5", "x > 5 \\lor x < 2"],
        ["x>2 \\text{ and } x<5", "x<2"],
    ),
    "points taken out": (
        "\\mathbb{R}\\setminus\\{-2,1\\}",
        ["x \\neq 1 \\text{ and } x \\neq -2", "x\\ne 1, -2", "\\mathbb{R}\\setminus\\{1,-2\\}"],
        ["x \\ne 1", "1, -2", "x \\ne 1, 2"],
    ),
    "infinity in letters": ("(-\\infty,3)", ["(-oo, 3)", "(-inf, 3)"], ["(oo, 3)", "(0, 3)"]),
    "no solution": (
        "\\emptyset",
        ["\\text{no solution}", "There are no real solutions.", "no solutions exist"],
        ["0", "\\text{no}", "one solution"],
    ),
    "dne": ("\\text{does not exist}", ["\\text{DNE}", "does not exist."], ["\\text{exists}", "0"]),
    "a number times a matrix": (
        "\\begin{pmatrix}1\\\\-1\\end{pmatrix}",
        ["\\frac{1}{2}\\begin{pmatrix}2\\\\-2\\end{pmatrix}", "-\\begin{bmatrix}-1\\\\1\\end{bmatrix}"],
        ["2\\begin{pmatrix}1\\\\-1\\end{pmatrix}", "-\\begin{pmatrix}1\\\\-1\\end{pmatrix}", "\\end{pmatrix}"],
    ),
    "a choice with its text": (
        "B",
        ["(B) 12", "\\textbf{(B)}\\ 12", "B. twelve", "B) $x+1$"],
        ["(C) 12", "(B) or (C)", "B. or C.", "(B) is wrong", "B 12", "(C) B"],
    ),
    "dots over the ends of the period": (
        "\\frac{41}{333}", ["0.\\dot{1}2\\dot{3}", "0.\\dot12\\dot3"], ["0.1\\dot{2}\\dot{3}", "0.123"],
    ),
    "degrees in an argument": (
        "\\frac12",
        ["\\sin 30^\\circ", "\\cos(60^\\circ)", "\\sin^2 45^\\circ"],
        ["\\sin 30", "\\cos 30^\\circ", "30^\\circ"],
    ),
    "colour is typography": (
        "\\frac12", ["\\color{red}{\\frac12}", "\\textcolor{blue}{\\frac12}"], ["\\color{red}{2}"],
    ),
    "the whole of what follows the verb": (
        "2,-3", ["The solutions are x = 2 and x = -3", "x is 2 or -3"], ["The solution is x = -3", "x = 2"],
    ),
    "an arrow over a letter": (
        "\\vec{b}+\\vec{a}", ["\\vec{a}+\\vec{b}", "\\vec a + \\vec b"], ["\\vec{a}-\\vec{b}", "\\vec{a}+\\vec{c}"],
    ),
    "a variable of the gold answer is missing": ("a^2", ["a^{2}", "a \\cdot a"], ["^2", "b^2", "2"]),
}  # fmt: skip
SAME = [(rule, answer, gold) for rule, (gold, same, _) in RULES.items() for answer in same]
DIFFERENT = [(rule, answer, gold) for rule, (gold, _, different) in RULES.items() for answer in different]


@pytest.mark.parametrize(("rule", "answer", "gold"), SAME)
def test_same(rule: str, answer: str, gold: str):
    verdict = judge(answer, gold, fast=False)
    assert verdict.equal, (rule, verdict)


@pytest.mark.parametrize(("rule", "answer", "gold"), DIFFERENT)
def test_different(rule: str, answer: str, gold: str):
    for fast in (True, False):
        verdict = judge(answer, gold, fast)
        assert not verdict.equal, (rule, verdict)
