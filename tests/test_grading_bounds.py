"""Every call returns in time, from any thread, without signals, and executes nothing."""

import inspect
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cs336_alignment.drgrpo_grader import question_only_reward_fn, r1_zero_reward_fn
from cs336_alignment.grading import Verdict, judge

SECONDS = 1.0
SIZE = 100_000

HUGE = [
    "9^{9^{9^9}}",
    "9**9**9**9",
    "(1/2)**(10**9)",
    "((9!)!)!",
    "99999999!",
    "1e999999999",
    "\\exp(\\exp(\\exp(\\exp(9))))",
    "x^{x^{x^{x^{9999}}}}",
    "(x+y+z)^{99999}",
    "(x+1)^{999}" * 30,
    "\\sum_{n=1}^{10^9} n",
    "\\sum_{n=1}^{\\infty} \\frac{1}{n^{10^9}}",
    "\\tan(10^{400})",
    "\\binom{10^9}{10^8}",
    "\\zeta(1.0001)",
    "(9**9**9)-(9**9**9)+1",
    "+".join(f"\\sin({k}x)" for k in range(300)),
    "+".join(f"\\frac{{1}}{{x+{k}}}" for k in range(300)),
    "\\{" + ",".join(f"\\sqrt{{x+{k}}}" for k in range(99)) + "\\}",
]
REPEATED = [
    "(", "[", "{", "\\{", "\\left(", "\\text{", "\\frac{", "\\frac", "\\sqrt", "\\sqrt{", "x^", "x^{", "-", "!", "|",
    "\\\\", "$", " ", "1", "1,", "1.", "9^", "x ", "and ", "answer is ", "= ", "one ", "million", "\\boxed{",
    "\\begin{array}{", "\u200b", "½", "**a", "1 000 ", "<b>", "\\pm", "(1,2)\\cup", "0.3", "is ", "not 1 ", "because ",
    "18 ", "\ud800", "\x00",
]  # fmt: skip
GOLDS = ["18", "\\frac{1}{2}", "x", "\\{1,2\\}", "\\text{yes}"]


def in_time(call: Callable[[], bool]) -> bool:
    """What the call returns, which must not take longer than `SECONDS`; twice, since a machine may stall once."""
    for last in (False, True):
        start = time.perf_counter()
        result = call()
        seconds = time.perf_counter() - start
        if seconds < SECONDS:
            break
        assert not last, f"{seconds:.2f} s"
    return result


@pytest.mark.parametrize("text", [*HUGE, *(piece * (SIZE // len(piece)) for piece in REPEATED)], ids=lambda t: t[:12])
def test_hostile_answers_take_less_than_a_second(text: str):
    for gold in GOLDS:
        for fast in (True, False):
            assert in_time(lambda gold=gold, fast=fast: not judge(text, gold, fast).equal)


@pytest.mark.parametrize("text", HUGE)
def test_hostile_golds_too(text: str):
    assert in_time(lambda: not judge("18", text, fast=False).equal)
    assert in_time(lambda: judge(text, text).equal)


@pytest.mark.parametrize("piece", [piece for piece in REPEATED if len(piece) < 9])
def test_sizes_where_texts_are_still_read(piece: str):
    in_time(lambda: judge(piece * (3_900 // len(piece)), "18", fast=False).equal)


@pytest.mark.parametrize(
    "answer", ["9^{9^{9^9}}", "100000!", "\\sin(" * 80 + "1" + ")" * 80, "1+" * 2000 + "1", "\\sqrt{10^{9999}+1}"]
)
def test_what_is_beyond_the_bounds_is_undecided_not_silently_wrong(answer: str):
    verdict = judge(answer, "18", fast=False)
    assert not verdict.equal
    assert verdict.undecided


def test_what_the_course_rules_cannot_decide_is_undecided_in_fast_mode_too():
    verdict = judge("2000!", "2000!+1")
    assert not verdict.equal
    assert verdict.undecided


def test_from_deep_in_the_callers_stack():
    """Nested answers take several hundred frames; where the caller leaves fewer, the verdict is undecided."""

    def call(depth: int) -> Verdict:
        return call(depth - 1) if depth else judge("\\{" * 58 + "x" + "\\}" * 58, "y", fast=False)

    assert not call(0).undecided
    verdict = call(sys.getrecursionlimit() - len(inspect.stack()) - 150)
    assert not verdict.equal
    assert verdict.undecided


def test_deep_nesting_within_the_bounds_is_read():
    assert judge("(" * 50 + "18" + ")" * 50, "18", fast=False).equal
    assert judge("{" * 50 + "18" + "}" * 50, "18", fast=False).equal
    assert judge("\\sqrt{" * 50 + "1" + "}" * 50, "1", fast=False).equal


def test_long_answers_are_still_compared_as_strings():
    number = "7" * 50_000
    assert judge(number, number).equal
    assert not judge(number + "7", number).equal
    assert not judge(number[:-1] + "8", number).equal


def test_from_many_threads_at_once():
    """No main thread, no signals; and threads do not disturb each other's precision."""
    pairs = [
        ("\\frac{2}{\\sqrt{5}-1}", "\\frac{1+\\sqrt{5}}{2}"),
        ("\\sin 2x", "2\\sin x\\cos x"),
        ("2^{2/3}", "\\sqrt[3]{4}"),
    ]
    failures: list[tuple[str, str]] = []

    def work() -> None:
        failures.extend(pair for _ in range(10) for pair in pairs if not judge(*pair, fast=False).equal)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_an_alarm_of_the_caller_stays_pending():
    before = signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, 300)
    try:
        for text in ("18 dollars", *HUGE[:5]):
            r1_zero_reward_fn(f"</think> <answer>{text}</answer>", "18", fast=False)
        remaining, _ = signal.getitimer(signal.ITIMER_REAL)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert remaining > 0


INJECTIONS = """\
import pathlib
from cs336_alignment.drgrpo_grader import r1_zero_reward_fn
touch = "__import__('pathlib').Path('pwned').touch()"
payloads = [
    touch, f"({touch})+1", f"sympify({touch!r})", f"\\\\frac{{{touch}}}{{2}}", f"f'{{{touch}}}'", f"N({touch!r})",
    f"exec({touch!r})", "open('pwned','w')", "\\\\immediate\\\\write18{touch pwned}", "; touch pwned", f"{touch}^2",
    f"sqrt({touch})", f"[{touch} for x in (1,)]", f"lambda: {touch}",
]
for payload in payloads:
    for gold in ("18", "0.5", "x", "(1,2)", payload):
        for fast in (True, False):
            r1_zero_reward_fn(f"</think> <answer>{payload}</answer>", gold, fast)
print(sorted(path.name for path in pathlib.Path().iterdir()))
"""


def test_nothing_is_executed(tmp_path: Path):
    """In a process of its own, with a time limit, in an empty folder."""
    done = subprocess.run(
        [sys.executable, "-c", INJECTIONS], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "[]\n"
    assert list(tmp_path.iterdir()) == []


def test_importing_the_grader_is_light():
    code = (
        "import sys, cs336_alignment.drgrpo_grader as g; g.r1_zero_reward_fn('</think> <answer>1/2</answer>', '0.5');"
        "print([name for name in ('sympy', 'torch', 'math_verify', 'latex2sympy2_extended') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"


def test_a_long_response_is_as_good_as_a_short_one():
    filler = "Let me think. " * 7_000
    assert r1_zero_reward_fn(f"{filler}</think> <answer>18</answer>", "18")["reward"] == 1.0
    assert question_only_reward_fn(f"{filler}\\boxed{{18}}", "18")["reward"] == 1.0
