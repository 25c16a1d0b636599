"""One GRPO optimiser step, the training part, of this library and of TRL's GRPOTrainer.

    uv run python scripts/prepare_smollm2.py && uv run python scripts/prepare_gsm8k.py
    uv run --group benchmarks python scripts/benchmarks/grpo_step.py [--dtype bfloat16] [--rounds 3]
    uv run --group benchmarks python scripts/benchmarks/grpo_step.py --profile

SmolLM2-135M and 32 rollouts: 4 questions of GSM8K in the r1_zero prompt, 8 responses of 16 to 256 random tokens each,
every advantage non-zero, on policy. This library runs `training.grpo.update`: packed rows within a token budget, each
prompt once, the output head at response positions alone. TRL's trainer runs its own `train()`, from its data loader to
its optimiser; only the generation is replaced, by these rollouts. It is tried at several microbatch sizes and judged by
its best. Its loss "grpo" without KL has the same gradient, which is checked.
"""

import argparse
import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from cs336_alignment.prompts import fill, load_template
from cs336_alignment.rollout.proof import SamplerCheck
from cs336_alignment.training.grpo import GRPOConfig, TrainBatch, update
from cs336_alignment.training.learner import Learner
from cs336_alignment.training.packing import TokenExample
from cs336_alignment.training.rollouts import Rollout
from scripts.benchmarks.optimizer_step import (
    StepBenchmark,
    load_model,
    parser,
    run,
    some_problems,
    trainer_arguments,
)


def made_rollouts(arguments: argparse.Namespace, tokenizer: Any) -> tuple[list[TokenExample], Tensor]:
    """The step's rollouts, group after group, and their advantages: of size 0.2 to 2, either sign."""
    sample = random.Random(1)
    template = load_template("r1_zero")
    examples, advantages = [], []
    for problem in some_problems(arguments.problems, arguments.examples // arguments.group_size):
        prompt_ids = tuple(tokenizer(fill(template, question=problem.question))["input_ids"])
        for _ in range(arguments.group_size):
            length = sample.randint(arguments.shortest, arguments.longest)
            response_ids = tuple(sample.randrange(3, len(tokenizer)) for _ in range(length))
            examples.append(TokenExample(prompt_ids, response_ids))
            advantages.append(sample.choice((-1, 1)) * sample.uniform(0.2, 2.0))
    return examples, torch.tensor(advantages, dtype=torch.float64)


def ours(arguments: argparse.Namespace, learner: Learner, tokenizer: Any) -> Callable[[], int]:
    examples, advantages = made_rollouts(arguments, tokenizer)
    rollouts = [
        Rollout("", "", "", example, (0.0,) * len(example.response_ids), 0, 0, 0, "stop") for example in examples
    ]
    batch = TrainBatch(rollouts, advantages, old_log_probs=None, reference_log_probs=None)
    config = GRPOConfig(
        optimizer=learner.config,
        rollout_batch_size=len(rollouts),
        train_batch_size=len(rollouts),
        group_size=arguments.group_size,
    )
    # No engine sampled these rollouts, so there is nothing to compare their log-probs with.
    unguarded = SimpleNamespace(check=lambda *_: SamplerCheck())
    session: Any = SimpleNamespace(learner=learner, ranks=learner.ranks, sampler_guard=lambda _: unguarded)
    return lambda: update(config, batch, session, step=1)["tokens_run"]


def theirs(arguments: argparse.Namespace, variant: str, callback: TrainerCallback, folder: str) -> Any:
    from datasets import Dataset
    from trl.trainer.grpo_config import GRPOConfig as TRLConfig  # pyright: ignore[reportMissingImports]
    from trl.trainer.grpo_trainer import GRPOTrainer  # pyright: ignore[reportMissingImports]

    model, tokenizer = load_model(arguments)
    rollouts = padded_rollouts(*made_rollouts(arguments, tokenizer), tokenizer.pad_token_id)

    class Trainer(GRPOTrainer):
        """Everything but the generation is TRL's."""

        def _generate_and_score_completions(self, inputs: Any) -> dict[str, Tensor]:
            return rollouts

    config = TRLConfig(
        **trainer_arguments(arguments, microbatch_size(variant), folder),
        num_generations=arguments.group_size,
        max_completion_length=arguments.longest,
        loss_type="grpo",
        beta=0.0,
        temperature=1.0,
    )
    return Trainer(
        model=model,
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=config,
        train_dataset=Dataset.from_dict({"prompt": ["-"] * (arguments.examples // arguments.group_size)}),
        processing_class=tokenizer,
        callbacks=[callback],
    )


def padded_rollouts(examples: list[TokenExample], advantages: Tensor, pad: int) -> dict[str, Tensor]:
    """The rollouts as TRL's trainer makes them: prompts padded on the left, completions on the right."""

    def padded(sequences: list[tuple[int, ...]], side: str) -> tuple[Tensor, Tensor]:
        tensors = [torch.tensor(sequence) for sequence in sequences]
        ids, mask = (
            torch.nn.utils.rnn.pad_sequence(values, batch_first=True, padding_value=value, padding_side=side)
            for values, value in ((tensors, pad), ([torch.ones_like(tensor) for tensor in tensors], 0))
        )
        return ids, mask

    prompt_ids, prompt_mask = padded([example.prompt_ids for example in examples], "left")
    completion_ids, completion_mask = padded([example.response_ids for example in examples], "right")
    return {
        "prompt_ids": prompt_ids,
        "prompt_mask": prompt_mask,
        "completion_ids": completion_ids,
        "completion_mask": completion_mask,
        "advantages": advantages.float(),
        "num_items_in_batch": completion_mask.sum(),
    }


def variants(arguments: argparse.Namespace) -> list[str]:
    return [f"TRL, microbatches of {size}" for size in arguments.microbatches]


def microbatch_size(variant: str) -> int:
    return int(variant.split()[-1])


def main() -> None:
    arguments = parser(__doc__, examples=32)
    arguments.add_argument("--group-size", type=int, default=8)
    arguments.add_argument("--shortest", type=int, default=16, help="response, in tokens")
    arguments.add_argument("--longest", type=int, default=256)
    run(StepBenchmark(__file__, ours, theirs, variants), arguments)


if __name__ == "__main__":
    main()
