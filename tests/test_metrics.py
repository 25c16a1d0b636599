"""Reading answers out of model outputs (supplementary handout: MMLU, GSM8K)."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.adapters import run_parse_gsm8k_response, run_parse_mmlu_response

EXAMPLE = {
    "subject": "virology",
    "question": "How many human polyomaviruses are known at present?",
    "options": ["100", "1", "10", "unknown"],
    "answer": "A",
}


def test_parse_mmlu_response():
    assert run_parse_mmlu_response(EXAMPLE, "The correct answer is B. There is one, the BK virus.") == "B"


def test_parse_mmlu_response_unknown():
    assert run_parse_mmlu_response(EXAMPLE, "The correct answer is 10000 polyomaviruses.") is None


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("C", "C"),
        (" (C) ten", "C"),
        ("D.", "D"),
        ("A) 100", "A"),
        ("answer: D", "D"),
        ("**Answer:** (B)", "B"),
        ("Answer is option C", "C"),
        ("The answer is A... no, the answer is B.", "B"),
        ("B is the correct answer.", "B"),
        ("The correct option is C.", "C"),
        ("The correct answer to the question is B.", "B"),
        ("I think the answer should be B.", "B"),
        ("Answer to question 3: B", "B"),
        ("The answer for question 3 is unclear. A guess would be B.", None),
        ("Option D", "D"),
        ('The answer is "B".', "B"),
        ("[B]", "B"),
        ("The answer is $\\boxed{B}$.", "B"),
        ("10.", "C"),
        ("UNKNOWN", "D"),
        ("", None),
        ("A virus is a small infectious agent.", None),
        ("The answer is A's host.", None),
        ("The answer is E.", None),
        ("The correct answer is b", None),
        ("I would say 10 or 100", None),
    ],
)
def test_parse_mmlu_response_forms(output, expected):
    assert run_parse_mmlu_response(EXAMPLE, output) == expected


def test_parse_mmlu_response_needs_exactly_one_matching_option():
    twice = {**EXAMPLE, "options": ["same", "same", "other", "none"]}
    assert run_parse_mmlu_response(twice, "same") is None
    assert run_parse_mmlu_response(twice, "other") == "C"


@given(st.sampled_from("ABCD"))
def test_parse_mmlu_response_finds_any_stated_letter(letter):
    assert run_parse_mmlu_response(EXAMPLE, f"Let me think. The correct answer is {letter}.") == letter


def test_parse_gsm8k_response():
    assert run_parse_gsm8k_response("She sold 48/2 = 24 clips in May and 48+24 = 72 clips in both months.") == "72"


def test_parse_gsm8k_response_unknown():
    assert run_parse_gsm8k_response("She sold twenty-four clips in May, so seventy-two in all.") is None


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("72", "72"),
        ("1,234", "1234"),
        ("1,234,567.50 dollars", "1234567.50"),
        ("-3.5", "-3.5"),
        ("−3.5", "-3.5"),
        ("$18.00.", "18.00"),
        ("a loss of -$7", "-7"),
        ("$-7", "-7"),
        ("48-24", "24"),
        ("x-2", "2"),
        ("(1)-2", "2"),
        ("50%-20", "20"),
        ("x = -2", "-2"),
        ("1, 2", "2"),
        ("1,23", "23"),
        (".5", ".5"),
        ("5 apples and 3.", "3"),
        ("", None),
        ("no digits here", None),
    ],
)
def test_parse_gsm8k_response_forms(output, expected):
    assert run_parse_gsm8k_response(output) == expected


@given(number=st.integers(-(10**12), 10**12), words=st.text("abc $.,:\n", max_size=8))
def test_parse_gsm8k_response_reads_back_any_integer(number, words):
    assert run_parse_gsm8k_response(f"It was 3, then {number:,} {words}") == str(number)


@given(st.text(max_size=200))
def test_parse_gsm8k_response_gives_a_number_or_none(text):
    answer = run_parse_gsm8k_response(text)
    assert answer is None or re.fullmatch(r"-?[0-9]*(\.[0-9]+)?", answer)
    assert (answer is None) == (re.search("[0-9]", text) is None)
