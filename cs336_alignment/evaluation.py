"""Problems through a rollout engine and the grader, to numbers with their protocol (handout sections 3 and 4.2).

`evaluate` generates and grades in chunks, and keeps each chunk on disk before it starts the next, so an interrupted run
loses at most one. `summarize` makes the numbers, `evaluation_report` the page for people.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean
from time import perf_counter
from typing import Any, Literal

import torch

from cs336_alignment.grading import Grade, Verdict, grade_question_only, grade_r1_zero
from cs336_alignment.numerics.log_probs import get_response_log_probs
from cs336_alignment.numerics.masking import masked_mean
from cs336_alignment.numerics.tokenization import collate_prompt_and_output, padding_id
from cs336_alignment.prompts import fill
from cs336_alignment.ranks import Ranks
from cs336_alignment.rollout.engine import Completion, RolloutEngine, Sampling, derive_seed
from cs336_alignment.run_folder import UsageError, append_json_lines, read_complete_json_lines, write_json_lines
from cs336_alignment.tasks.problem import Problem

Grader = Callable[[str, str, bool], Grade]
"""(response, gold, fast) -> Grade; `fast` is the course-compatible verdict."""

GRADERS: dict[str, Grader] = {"r1_zero": grade_r1_zero, "question_only": grade_question_only}
"""The grader that knows the answer format of each prompt."""

Category = Literal["type1", "type2", "type3"]

EXAMPLES = "completions/examples.jsonl"
METRICS = "metrics.jsonl"
SEED_BLOCK = 256


@dataclass(frozen=True)
class EvaluationProtocol:
    """All that a figure depends on. Figures of different protocols do not belong in one table unremarked."""

    model: str
    split: str
    split_sha256: str
    n_problems: int
    prompt: str
    prompt_sha256: str
    sampling: Sampling
    chunk_size: int
    engine: dict[str, str | int]


@dataclass(frozen=True)
class GradedExample:
    """One problem, one response, its grade. Field order is column order in `completions/examples.jsonl`.

    Attributes:
        parsed_answer: the text that was judged; None where the format left none.
        format_reward, answer_reward, reward: the course-compatible rewards.
        semantic_reward: the reward when answers that mean the same count as equal.
        undecided: the semantic judgement ran into the grader's bounds.
        length: sampled tokens, EOS included.
    """

    index: int
    prompt: str
    response: str
    token_ids: tuple[int, ...]
    gold: str
    parsed_answer: str | None
    format_reward: float
    answer_reward: float
    reward: float
    semantic_reward: float
    undecided: bool
    length: int
    finish_reason: str

    @property
    def category(self) -> Category:
        """The handout's three: type1 correct, type2 formatted but wrong, type3 unformatted."""
        if not self.format_reward:
            return "type3"
        return "type1" if self.answer_reward else "type2"


def grader_of(reward_fn: Callable[[str, str], dict[str, float]]) -> Grader:
    """A reward function, (response, gold) -> `format_reward`, `answer_reward`, each 0 or 1, as a grader: both of its
    verdicts are that function's, and the answer that was judged stays unknown."""

    def grade(response: str, gold: str, _: bool) -> Grade:
        rewards = reward_fn(response, gold)
        return Grade(bool(rewards["format_reward"]), None, Verdict(bool(rewards["answer_reward"]), "reward function"))

    return grade


def evaluate(
    engine: RolloutEngine,
    grader: Grader,
    problems: Sequence[Problem],
    template: str,
    sampling: Sampling,
    run_folder: Path,
    chunk_size: int = 256,
    ranks: Ranks | None = None,
) -> list[GradedExample]:
    """Generate one response a problem, grade it, and write it down; continue where the folder's earlier run stopped.

    Where the handout's `evaluate_vllm` takes a reward function, this takes the grader that such a function is made of:
    it also has the second verdict, the parsed answer and the count of undecided ones. `grader_of` makes one out of a
    reward function.

    Examples go to `completions/examples.jsonl`, a line a chunk to `metrics.jsonl`. A continued run gives the same
    examples as one that was never interrupted, whatever the chunks and the ranks: a problem's draws depend on its place
    in the data.

    Args:
        engine: the policy.
        grader: (response, gold, fast) -> Grade.
        problems: what to ask.
        template: with a `{question}` field.
        sampling: one completion a problem (`n` is 1).
        run_folder: where to write; it may hold the chunks of an earlier run with the same arguments.
        chunk_size: problems that are generated and stored at once.
        ranks: this process among its peers, who share each chunk out and draw what one process would; None is alone.

    Raises:
        ValueError: `sampling.n` is not 1, `chunk_size` is below 1, a prompt is too long for the model, or the folder
            holds examples of other problems.
    """
    _one_completion(sampling)
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")
    ranks = ranks or Ranks()
    examples = _stored_examples(run_folder, problems, template, chunk_size)
    ranks.wait()  # until all have read what the main rank now cuts
    if ranks.is_main:
        _cut_to(run_folder, examples)
    for start in range(len(examples), len(problems), chunk_size):
        chunk = problems[start : start + chunk_size]
        graded, seconds = answer(engine, grader, chunk, template, sampling, ranks, first_index=start, block=SEED_BLOCK)
        tokens = sum(example.length for example in graded)
        row = {"chunk_start": start, "examples": len(graded), "tokens": tokens, "generation_seconds": seconds}
        if ranks.is_main:
            # Metrics first: a run continued after a kill between the two drops a row whose examples are not there.
            append_json_lines(run_folder / METRICS, [row])
            append_json_lines(run_folder / EXAMPLES, map(asdict, graded))
        examples += graded
    return examples


def answer(
    engine: RolloutEngine,
    grader: Grader,
    problems: Sequence[Problem],
    template: str,
    sampling: Sampling,
    ranks: Ranks,
    first_index: int = 0,
    block: int | None = None,
) -> tuple[list[GradedExample], float]:
    """One graded response a problem, generated and graded by all ranks and known to each, and the seconds that the
    slowest of them took to generate. The draws are those of one rank.

    Args:
        engine, grader, problems, template, sampling: as `evaluate` takes them.
        ranks: this process among its peers.
        first_index: of the first problem, for its record and its draws.
        block: so many problems, counted from the data's first, share a seed; None is one seed for all.
    """
    first, mine = ranks.share(problems)
    first += first_index
    prompts = [fill(template, question=problem.question) for problem in mine]
    began = perf_counter()
    drawn = []
    for start, end in _calls(first, first + len(prompts), block):
        drawn += engine.generate(prompts[start - first : end - first], _sampling_at(start, sampling, block))
    seconds = perf_counter() - began
    place, answered = ranks.share_in_group(list(zip(prompts, mine, drawn, strict=True)))
    graded = [
        grade_completion(first + place + offset, prompt, problem, completions[0], grader)
        for offset, (prompt, problem, completions) in enumerate(answered)
    ]
    return ranks.gather(graded), max(ranks.gather([seconds]))


def check_prompts(path: Path, problems: Sequence[Problem], template: str, tokenizer: Any, max_positions: int) -> None:
    """All prompts of a file must leave room for a response, so that none ends a run on the day that it is drawn.

    Args:
        path: the file, for the message.
        problems: its problems, one a line.
        template: with a `{question}` field.
        tokenizer: the model's.
        max_positions: of prompt and response together.

    Raises:
        UsageError: naming the lines of the prompts that do not.
    """
    texts = [fill(template, question=problem.question) for problem in problems]
    lengths = [len(ids) for ids in tokenizer(texts)["input_ids"]]
    too_long = [line for line, length in enumerate(lengths, start=1) if length >= max_positions]
    if too_long:
        first = too_long[0]
        more = f", and {len(too_long) - 1:,} further lines" if len(too_long) > 1 else ""
        raise UsageError(
            f"{path}, line {first}{more}: the prompt has {lengths[first - 1]:,} tokens, the model {max_positions:,} "
            "positions for prompt and response together: take the line out"
        )


def _calls(start: int, end: int, block: int | None) -> Iterator[tuple[int, int]]:
    """Cut a range of problems where a block ends, for a call of the engine has one seed."""
    while start < end:
        stop = end if block is None else min(end, (start // block + 1) * block)
        yield start, stop
        start = stop


def _sampling_at(start: int, sampling: Sampling, block: int | None) -> Sampling:
    """That of a call: the problems of a block share a seed, and each has its place among them."""
    if block is None:
        return replace(sampling, first_position=start)
    place = start % block
    return replace(sampling, seed=derive_seed(sampling.seed, start - place), first_position=place)


def grade_completion(
    index: int, prompt: str, problem: Problem, completion: Completion, grader: Grader
) -> GradedExample:
    """Both verdicts on one completion."""
    grade = grader(completion.text, problem.gold, True)
    semantic = grader(completion.text, problem.gold, False)
    return GradedExample(
        index=index,
        prompt=prompt,
        response=completion.text,
        token_ids=completion.token_ids,
        gold=problem.gold,
        parsed_answer=grade.answer,
        **grade.rewards,
        semantic_reward=semantic.rewards["reward"],
        undecided=semantic.verdict.undecided,
        length=len(completion.token_ids),
        finish_reason=completion.finish_reason,
    )


def summarize(examples: Sequence[GradedExample], generation_seconds: float) -> dict[str, Any]:
    """The figures of an evaluation, as `summary.json` holds them; the README's glossary defines each.

    Raises:
        ValueError: there are no examples.
    """
    if not examples:
        raise ValueError("there are no examples to summarise")
    n = len(examples)
    correct = [example for example in examples if example.reward]
    tokens = sum(example.length for example in examples)
    return {
        "n": n,
        "accuracy": len(correct) / n,
        "accuracy_interval": wilson_interval(len(correct), n),
        "accuracy_semantic": mean(example.semantic_reward for example in examples),
        "verdicts_differ": sum(example.reward != example.semantic_reward for example in examples),
        "undecided": sum(example.undecided for example in examples),
        "format_rate": mean(example.format_reward for example in examples),
        "categories": {
            category: sum(example.category == category for example in examples)
            for category in ("type1", "type2", "type3")
        },
        "truncation_rate": sum(example.finish_reason == "length" for example in examples) / n,
        "mean_length": tokens / n,
        "mean_length_correct": _mean_length(correct),
        "mean_length_incorrect": _mean_length(example for example in examples if not example.reward),
        "generation_seconds": generation_seconds,
        "examples_per_second": n / generation_seconds,
        "tokens_per_second": tokens / generation_seconds,
    }


def generation_seconds(run_folder: Path) -> float:
    """Seconds spent generating, over all the sessions that filled this folder."""
    return sum(row["generation_seconds"] for row in read_complete_json_lines(run_folder / METRICS))


def wilson_interval(successes: int, n: int) -> tuple[float, float]:
    """The 95% interval of a success rate (Wilson 1927); unlike p +- 2 sqrt(p q / n) it is right near 0 and 1.

    (p + z^2/2n +- z sqrt(p q / n + z^2/4n^2)) / (1 + z^2/n),  z = 1.96
    """
    z = 1.959964
    p = successes / n
    centre = p + z * z / (2 * n)
    spread = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return (max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale))


@dataclass(frozen=True)
class LoggedGeneration:
    """A graded example with the mean entropy of the policy over its response tokens, in nats; NaN without tokens."""

    example: GradedExample
    mean_token_entropy: float


def log_generations(
    engine: RolloutEngine,
    policy: Any,
    tokenizer: Any,
    problems: Sequence[Problem],
    template: str,
    grader: Grader,
    sampling: Sampling,
) -> tuple[list[LoggedGeneration], dict[str, float | None]]:
    """What the policy writes to a few problems during training, with all that the handout asks to log.

    Args:
        engine: samples the responses.
        policy: the Hugging Face model whose entropy is measured; it should hold the weights that the engine has.
        tokenizer: the policy's.
        problems, template, grader, sampling: as `evaluate` takes them.

    Returns:
        One record a problem (prompt, response, gold, the three rewards, length, entropy) and the means: `entropy`,
        `length`, `length_correct`, `length_incorrect`, `reward`; a length without responses to average is None.

    Raises:
        ValueError: `sampling.n` is not 1, or there are no problems.

    Source: handout, problem log_generations.
    """
    _one_completion(sampling)
    if not problems:
        raise ValueError("there are no problems to log generations for")
    prompts = [fill(template, question=problem.question) for problem in problems]
    completions = [drawn[0] for drawn in engine.generate(prompts, sampling)]
    logged = []
    for index, (prompt, problem, completion) in enumerate(zip(prompts, problems, completions, strict=True)):
        example = grade_completion(index, prompt, problem, completion, grader)
        logged.append(LoggedGeneration(example, _mean_entropy(policy, tokenizer, prompt, completion)))
    correct = [row.example for row in logged if row.example.reward]
    incorrect = [row.example for row in logged if not row.example.reward]
    means = {
        "entropy": mean(row.mean_token_entropy for row in logged),
        "length": _mean_length(row.example for row in logged),
        "length_correct": _mean_length(correct),
        "length_incorrect": _mean_length(incorrect),
        "reward": mean(row.example.reward for row in logged),
    }
    return logged, means


def _one_completion(sampling: Sampling) -> None:
    if sampling.n != 1:
        raise ValueError(f"evaluation takes one completion a problem, got n = {sampling.n}")


@torch.no_grad()
def _mean_entropy(policy: Any, tokenizer: Any, prompt: str, completion: Completion) -> float:
    batch = collate_prompt_and_output([tokenizer(prompt)["input_ids"]], [completion.token_ids], padding_id(tokenizer))
    input_ids, labels, mask = (batch[name].to(policy.device) for name in ("input_ids", "labels", "response_mask"))
    entropy = get_response_log_probs(policy, input_ids, labels, return_token_entropy=True)["token_entropy"]
    return masked_mean(entropy, mask).item()


def _mean_length(examples: Iterable[GradedExample]) -> float | None:
    lengths = [example.length for example in examples]
    return mean(lengths) if lengths else None


def _stored_examples(
    run_folder: Path, problems: Sequence[Problem], template: str, chunk_size: int
) -> list[GradedExample]:
    """The examples of the chunks that an earlier run finished, without what a kill left of the next chunk."""
    path = run_folder / EXAMPLES
    rows = read_complete_json_lines(path)
    examples = [GradedExample(**{**row, "token_ids": tuple(row["token_ids"])}) for row in rows]
    if len(examples) < len(problems):
        examples = examples[: len(examples) // chunk_size * chunk_size]
    for example, problem in zip(examples, problems, strict=False):
        if example.prompt != fill(template, question=problem.question):
            raise ValueError(f"{path}: example {example.index} answers another prompt; use a new run folder")
    return examples


def _cut_to(run_folder: Path, examples: Sequence[GradedExample]) -> None:
    """Leave in a run folder what these examples are, and the metrics of their chunks."""
    if (run_folder / EXAMPLES).exists():
        write_json_lines(run_folder / EXAMPLES, map(asdict, examples))
    if (run_folder / METRICS).exists():
        metrics = read_complete_json_lines(run_folder / METRICS)
        write_json_lines(run_folder / METRICS, [row for row in metrics if row["chunk_start"] < len(examples)])
