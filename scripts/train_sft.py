"""Fine-tune a policy on worked solutions or reasoning traces (handout section 4).

    uv run python scripts/train_sft.py --model data/models/qwen2.5-math-1.5b --output runs/sft
    uv run python scripts/train_sft.py --unique-examples 256 ...
    uv run python scripts/train_sft.py --data traces.jsonl --filter-correct ...

Without --data the targets are the rationales of --train-data. Those are all correct, so filtering them would be no
experiment; the handout's comparison of filtered with unfiltered data needs traces: R1's, or ones that
scripts/sample_traces.py makes. The loop is cs336_alignment/training/sft.py.
"""

import random
from collections.abc import Sequence
from typing import Any

from transformers import AutoTokenizer

from cs336_alignment import prompts
from cs336_alignment.evaluation import GRADERS
from cs336_alignment.tasks.traces import Trace, load_traces
from cs336_alignment.training.command_line import problems_from, run_command
from cs336_alignment.training.packing import TokenExample
from cs336_alignment.training.session import Session, UsageError
from cs336_alignment.training.sft import SFTConfig, rationale_examples, token_examples, train_sft


def run(config: SFTConfig) -> None:
    examples = targets(config, AutoTokenizer.from_pretrained(config.run.model))
    eval_problems = problems_from("eval-data", config.run.eval_data)
    steps = config.sft.steps(len(examples))
    with Session(config, config.run, config.optimizer, eval_problems, steps=steps) as session:
        train_sft(config, examples, session)


def targets(config: SFTConfig, tokenizer: Any) -> list[TokenExample]:
    """What to imitate, as the options say.

    Raises:
        UsageError: options that do not go together, or no target is left.
    """
    if config.data is None:
        if config.filter_correct:
            raise UsageError("--filter-correct needs --data: the rationales of --train-data are all correct")
        if config.run.prompt != "r1_zero":
            raise UsageError("rationales are written in the r1_zero format; for another --prompt give --data")
        problems = subset(problems_from("train-data", config.run.train_data), config)
        template = prompts.load_template(config.run.prompt)
        return rationale_examples(problems, template, tokenizer, config.append_eos)
    traces = load_traces(config.data)
    if config.filter_correct:
        traces = correct(traces, config)
    pairs = [(trace.prompt, trace.response) for trace in subset(traces, config)]
    if not pairs:
        raise UsageError(f"--data: {config.data} leaves no trace to learn from")
    return token_examples(pairs, tokenizer, config.append_eos)


def correct(traces: Sequence[Trace], config: SFTConfig) -> list[Trace]:
    """The traces whose answer is right.

    Raises:
        UsageError: a trace has no ground truth.
    """
    grader = GRADERS[config.run.prompt]
    kept = []
    for number, trace in enumerate(traces, start=1):
        if trace.ground_truth is None:
            raise UsageError(f"--filter-correct: trace {number} of {config.data} has no ground_truth to check against")
        if grader(trace.response, trace.ground_truth, True).rewards["reward"]:
            kept.append(trace)
    print(f"{len(kept):,} of {len(traces):,} traces are correct")
    return kept


def subset(items: Sequence[Any], config: SFTConfig) -> list[Any]:
    """So many of them, drawn with the run's seed; all where none are asked for.

    Raises:
        UsageError: there are not that many.
    """
    if config.unique_examples is None:
        return list(items)
    if not 1 <= config.unique_examples <= len(items):
        raise UsageError(f"--unique-examples {config.unique_examples}: there are {len(items):,} to choose from")
    return random.Random(config.run.seed).sample(list(items), config.unique_examples)


if __name__ == "__main__":
    run_command(SFTConfig, __doc__, run)
