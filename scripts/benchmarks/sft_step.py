"""One SFT optimiser step of this library and of TRL's SFTTrainer, on examples of mixed lengths.

    uv run python scripts/prepare_smollm2.py && uv run python scripts/prepare_gsm8k.py
    uv run --group benchmarks python scripts/benchmarks/sft_step.py [--dtype bfloat16] [--rounds 3]
    uv run --group benchmarks python scripts/benchmarks/sft_step.py --profile

SmolLM2-135M and 32 problems of GSM8K in the r1_zero prompt, their rationales as targets; the loss is on the targets
alone. This library runs `training.sft.sft_steps`: packed rows within a token budget, the output head at response
positions alone. TRL's trainer gets the same token ids and runs its own `train()`, with both of its ways to waste little
on padding: batches of similar length (`train_sampling_strategy="group_by_length"`), and none at all (`padding_free`).
It is tried at several microbatch sizes and judged by its best. Its loss is the mean over all target tokens; so is this
library's here, by its normalising constant, and the gradients are compared.
"""

import argparse
from collections.abc import Callable
from itertools import islice
from typing import Any

from transformers import TrainerCallback

from cs336_alignment.prompts import load_template
from cs336_alignment.training.learner import Learner
from cs336_alignment.training.packing import TokenExample
from cs336_alignment.training.sft import SFTStepsConfig, sft_steps
from cs336_alignment.training.targets import rationale_traces, token_examples
from scripts.benchmarks.optimizer_step import (
    StepBenchmark,
    load_model,
    parser,
    run,
    some_problems,
    trainer_arguments,
)

WAYS = {
    "grouped by length": {"train_sampling_strategy": "group_by_length"},
    "padding-free": {"padding_free": True},
}


def made_examples(arguments: argparse.Namespace, tokenizer: Any) -> list[TokenExample]:
    problems = some_problems(arguments.problems, arguments.examples)
    return token_examples(rationale_traces(problems, load_template("r1_zero")), tokenizer, append_eos=True)


def ours(arguments: argparse.Namespace, learner: Learner, tokenizer: Any) -> Callable[[], int]:
    examples = made_examples(arguments, tokenizer)
    mean_length = sum(len(example.response_ids) for example in examples) / len(examples)
    config = SFTStepsConfig(epochs=2, batch_size=len(examples), warmup_share=0, normalize_constant=mean_length)
    steps = sft_steps(learner, examples, config, seed=0)
    return lambda: next(result.tokens_run for _, result in islice(steps, 1))


def theirs(arguments: argparse.Namespace, variant: str, callback: TrainerCallback, folder: str) -> Any:
    from datasets import Dataset
    from trl.trainer.sft_config import SFTConfig as TRLConfig  # pyright: ignore[reportMissingImports]
    from trl.trainer.sft_trainer import SFTTrainer  # pyright: ignore[reportMissingImports]

    model, tokenizer = load_model(arguments)
    way, _, size = variant.removeprefix("TRL ").rpartition(", ")
    config = TRLConfig(
        **trainer_arguments(arguments, int(size), folder),
        **WAYS[way],
        completion_only_loss=True,
        max_length=None,
    )
    rows = [
        {
            "input_ids": [*example.prompt_ids, *example.response_ids],
            "completion_mask": [0] * len(example.prompt_ids) + [1] * len(example.response_ids),
        }
        for example in made_examples(arguments, tokenizer)
    ]
    return SFTTrainer(
        model=model,
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[callback],
    )


def variants(arguments: argparse.Namespace) -> list[str]:
    return [f"TRL {way}, {size}" for way in WAYS for size in arguments.microbatches]


def main() -> None:
    run(StepBenchmark(__file__, ours, theirs, variants), parser(__doc__, examples=32))


if __name__ == "__main__":
    main()
