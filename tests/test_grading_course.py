"""The course-compatible verdict (`fast=True`): each rule of the contract, and the official grader's false positives."""

import pytest

from cs336_alignment.grading import judge


@pytest.mark.parametrize(
    ("answer", "gold", "step"),
    [
        # the string rule
        ("72", "72", "same text"),
        (" 72\n", "72", "same text"),
        ("\\text{72}", "72", "string rule"),
        ("72\\text{ clips}", "72", "string rule"),
        ("72 hours", "72", "string rule"),
        ("72 sq m", "72", "string rule"),
        ("\\$72", "72", "string rule"),
        ("72\\%", "72", "string rule"),
        ("72^\\circ", "72", "string rule"),
        ("x = 72", "72", "string rule"),
        ("\\frac12", "\\frac{1}{2}", "string rule"),
        ("\\sqrt3", "\\sqrt{3}", "string rule"),
        ("3/4", "\\frac{3}{4}", "string rule"),
        ("0.5", "\\frac{1}{2}", "string rule"),
        (".5", "0.5", "string rule"),
        # the normal form
        ("$72$", "72", "normal form"),
        ("1,250", "1250", "normal form"),
        ("1,\\!250", "1250", "normal form"),
        ("72.00", "72", "normal form"),
        ("72.000000001", "72", "normal form"),
        ("2 million", "2*10^6", "normal form"),
        ("\\mathbf{72}", "72", "normal form"),
        ("YES", "\\text{Yes}", "normal form"),
        ("(0,1) and (2,3)", "(0,1), (2,3)", "normal form"),
        # element by element
        ("(72)", "72", "elements"),
        ("(1+1, x)", "(1+1,1x)", "elements"),
        ("5/2", "2.5", "elements"),
        ("1\\frac{2}{3}", "5/3", "elements"),
        ("2\\sqrt{2}", "\\sqrt{8}", "elements"),
        ("(x+1)(x-1)", "x^2-1", "elements"),
        ("b+a", "a+b", "elements"),
    ],
)
def test_accepted_by_the_named_rule(answer: str, gold: str, step: str):
    verdict = judge(answer, gold)
    assert (verdict.equal, verdict.step) == (True, step)
    assert judge(answer, gold, fast=False).equal  # the semantic verdict holds everything of this one


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("73", "72"),
        ("seventy-two", "72"),
        ("The answer is 72.", "72"),
        ("72 clips", "72"),
        ("**72**", "72"),
        ("7.2 x 10^1", "72"),
        ("Total = 72", "72"),
        ("4/8", "1/2"),  # two plain fractions must be identical
        ("36*2", "72"),  # an integer against a non-integer is not evaluated
        ("x^12", "x^{6}x^{6}"),  # no two-digit powers
        ("x+y+z", "z+y+x"),  # at most two letters
        ("[1,2)", "(1,2)"),
        ("(1,2,3)", "(1,2)"),
        ("", "72"),
        ("anything", ""),
    ],
)
def test_rejected_as_the_course_does(answer: str, gold: str):
    assert not judge(answer, gold).equal


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("2 hours 5 minutes", "25"),  # digits glued across removed words
        ("1%9", "19"),
        ("2 1/2", "21/2"),
        ("!=19", "19"),
        ("<=19", "19"),
        ("x<=19", "19"),
        ("19\\text{ is not right, it is 20}", "19"),
        ("\\frac{y+3}{4}", "y+3/4"),  # grouping lost
        ("x+1/2", "\\frac{x+1}{2}"),
        ("e^2x", "e^{2x}"),
        ("2^{10}0", "2^{100}"),
        ("\\sqrt[3]{7}", "\\sqrt{7}"),  # the root's index ignored
        ("c+b", "a+b"),  # letters dropped as units
        ("\\frac{h}{g}", "\\frac{a}{g}"),
        ("5 \\text{ days}", "5 \\text{ hours}"),
        ("98765432109876543211", "98765432109876543210"),  # compared as floats
        ("z = 5", "x = 5"),
        ("(5678)", "(5,678)"),
        ("\\ln 10", "5\\ln 2"),
        ("7 \\pmod{5}", "5 \\pmod{7}"),
        ("3_00", "300"),
    ],
)
def test_false_positives_of_the_official_grader_are_refused(answer: str, gold: str):
    for fast in (True, False):
        verdict = judge(answer, gold, fast)
        assert not verdict.equal, verdict


def test_a_refusal_says_so():
    assert judge("x<=19", "19").step == "string rule, refuted by meaning"
