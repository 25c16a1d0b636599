"""What SFT imitates: GSM8K's worked solutions, or reasoning traces from a file, as token ids.

Rationales are all correct, so filtering them by correctness would be no experiment. The handout's comparison of
filtered with unfiltered data needs traces: R1's, or ones that scripts/sample_traces.py makes.
"""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from cs336_alignment.evaluation import GRADERS
from cs336_alignment.prompts import fill, load_template
from cs336_alignment.run_folder import UsageError
from cs336_alignment.tasks.problem import Problem
from cs336_alignment.tasks.traces import Trace, load_traces
from cs336_alignment.training.packing import TokenExample

T = TypeVar("T")


def sft_targets(
    tokenizer: Any,
    prompt: str,
    *,
    data: Path | None,
    problems: Sequence[Problem] | None,
    filter_correct: bool,
    unique_examples: int | None,
    append_eos: bool,
    seed: int,
) -> list[TokenExample]:
    """What to imitate, as the options of the SFT command say.

    Args:
        tokenizer: the policy's.
        prompt: name of the prompt template, and of the grader.
        data: a file of traces, or None for the rationales of `problems`.
        problems: needed without `data`.
        filter_correct: only traces whose answer is right.
        unique_examples: so many, drawn with the seed; None takes all.
        append_eos: end each target in EOS, but for traces that were cut off.
        seed: of the draw.

    Raises:
        UsageError: options that do not go together, or that leave nothing to imitate.
    """
    if data is None:
        if filter_correct:
            raise UsageError("--filter-correct needs --data: the rationales of --train-data are all correct")
        if prompt != "r1_zero":
            raise UsageError("rationales are written in the r1_zero format; for another --prompt give --data")
        assert problems is not None
        traces = rationale_traces(subset(problems, unique_examples, seed), load_template(prompt))
    else:
        try:
            traces = load_traces(data)
        except (FileNotFoundError, ValueError) as error:
            raise UsageError(f"--data: {error}") from error
        if filter_correct:
            traces = correct_traces(traces, prompt, data)
        traces = subset(traces, unique_examples, seed)
    if not traces:
        raise UsageError(f"--data: {data} leaves no trace to learn from")
    return token_examples(traces, tokenizer, append_eos)


def rationale_traces(problems: Sequence[Problem], template: str) -> list[Trace]:
    """Prompts and worked solutions in the r1_zero format, with the spaces that its grader asks for.

    The prompt ends in `<think>`; the target is ` rationale </think> <answer> N </answer>`.

    Raises:
        UsageError: a problem has no rationale.
    """
    traces = []
    for problem in problems:
        if not problem.rationale:
            raise UsageError(f"no rationale to learn from for the question {problem.question!r:.80}")
        target = f" {problem.rationale} </think> <answer> {problem.gold} </answer>"
        traces.append(Trace(fill(template, question=problem.question), target, problem.gold))
    return traces


def token_examples(traces: Sequence[Trace], tokenizer: Any, append_eos: bool) -> list[TokenExample]:
    """Texts as token ids, prompt and response tokenised apart as `tokenize_prompt_and_output` does. A response that was
    cut off gets no EOS, which would teach to stop in mid-sentence."""
    return [
        TokenExample(
            tuple(tokenizer(trace.prompt)["input_ids"]),
            (
                *tokenizer(trace.response, add_special_tokens=False)["input_ids"],
                *([tokenizer.eos_token_id] if append_eos and not trace.truncated else []),
            ),
        )
        for trace in traces
    ]


def check_lengths(examples: Sequence[TokenExample], positions: int) -> None:
    """Refuse what the model has no positions for.

    Raises:
        UsageError: an example is too long.
    """
    too_long = [number for number, example in enumerate(examples, start=1) if example.length > positions]
    if too_long:
        raise UsageError(
            f"{len(too_long):,} of {len(examples):,} examples are longer than the model's {positions:,} positions, the "
            f"first of them number {too_long[0]:,} with {examples[too_long[0] - 1].length:,} tokens: leave them out"
        )


def correct_traces(traces: Sequence[Trace], prompt: str, path: Path) -> list[Trace]:
    """The traces whose answer is right.

    Raises:
        UsageError: a trace has no ground truth.
    """
    kept = []
    for number, trace in enumerate(traces, start=1):
        if trace.ground_truth is None:
            raise UsageError(f"--filter-correct: trace {number} of {path} has no ground_truth to check against")
        if GRADERS[prompt](trace.response, trace.ground_truth, True).rewards["reward"]:
            kept.append(trace)
    print(f"{len(kept):,} of {len(traces):,} traces are correct")
    return kept


def subset(items: Sequence[T], count: int | None, seed: int) -> list[T]:
    """So many of them, drawn with a seed; all where no count is given.

    Raises:
        UsageError: there are not that many.
    """
    if count is None:
        return list(items)
    if not 1 <= count <= len(items):
        raise UsageError(f"--unique-examples {count}: there are {len(items):,} to choose from")
    return random.Random(seed).sample(list(items), count)
