"""Supervised fine-tuning on token-id examples (handout section 4, problem sft_experiment).

    for each epoch:  shuffle the examples
        for each batch of D examples:
            loss = -1/D sum_i sum_t log pi(y_it | x_i, y_i<t) / normalize_constant
            clip the gradient, step

`sft_steps` is that loop, and expert iteration runs it too; `train_sft` puts evaluations, records and checkpoints around
it. Deviates from the handout in the data: GSM8K's rationales, or traces from a file, in place of R1's on MATH.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from time import monotonic
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer

from cs336_alignment.numerics.aggregation import constant_weights
from cs336_alignment.training.batching import Microbatch
from cs336_alignment.training.learner import Learner, OptimizerConfig, StepResult, TokenLossOf, warmup_cosine
from cs336_alignment.training.metrics import step_metrics
from cs336_alignment.training.packing import TokenExample
from cs336_alignment.training.session import RunConfig, Session, problems_from, problems_to_ask, reading_model, shuffled
from cs336_alignment.training.targets import check_lengths, sft_targets


@dataclass(frozen=True)
class SFTStepsConfig:
    """How to go through the examples."""

    epochs: int = 2
    """Times that each example is seen."""
    batch_size: int = 64
    """Examples an optimiser step."""
    warmup_share: float = 0.05
    """Share of the steps in which the learning rate rises; after them it falls along a cosine, to 0."""
    normalize_constant: float = 1.0
    """Divides the sum over each response's tokens."""

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 1:
            raise ValueError(f"epochs and batch_size must be at least 1, got {self.epochs} and {self.batch_size}")
        if not 0 <= self.warmup_share <= 1:
            raise ValueError(f"warmup_share must be between 0 and 1, got {self.warmup_share}")
        if self.normalize_constant <= 0:
            raise ValueError(f"normalize_constant must be positive, got {self.normalize_constant}")

    def steps(self, examples: int) -> int:
        """Optimiser steps over so many examples; the last batch of an epoch may be smaller."""
        return self.epochs * -(-examples // self.batch_size)


@dataclass(frozen=True)
class SFTConfig:
    """Supervised fine-tuning."""

    run: RunConfig = field(default_factory=RunConfig)
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(learning_rate=2e-5))
    sft: SFTStepsConfig = field(default_factory=SFTStepsConfig)
    data: Path | None = None
    """JSON lines of `prompt` and `response` (and `ground_truth`, to filter) to train on; default: the rationales of
    --train-data."""
    unique_examples: int | None = None
    """Only so many different examples, the handout's 128, 256, 512, 1024; default: all."""
    filter_correct: bool = False
    """Only traces whose answer is right. Rationales all are, so this is for --data."""
    append_eos: bool = True
    """End each target in EOS, so that the policy learns to stop by itself too."""

    @property
    def sequences_per_step(self) -> int:
        return self.sft.batch_size

    @property
    def sequences_sampled(self) -> int:
        """In an evaluation."""
        return self.run.eval_limit

    @property
    def keeps_reference(self) -> bool:
        return False

    def longest_example(self) -> int:
        return max(example.length for example in load_examples(self))

    @property
    def shorten(self) -> str:
        return "leave the longest examples out of the data"


def run_sft(config: SFTConfig) -> bool:
    """The whole command: data, policy, engine, training; False where it was asked to stop before its end."""
    examples = load_examples(config)
    eval_problems = problems_to_ask("eval-data", config.run.eval_data, config.run)
    steps = config.sft.steps(len(examples))
    with Session(config, config.run, config.optimizer, eval_problems, steps=steps, traces=config.data) as session:
        train_sft(config, examples, session)
        return session.progress.step == steps


@lru_cache(maxsize=1)
def load_examples(config: SFTConfig) -> tuple[TokenExample, ...]:
    """What the options ask to imitate. Kept: the prediction of memory asks too.

    Raises:
        UsageError: they do not go together, leave nothing, or an example is longer than the model's positions.
    """
    with reading_model(config.run.model):
        tokenizer = AutoTokenizer.from_pretrained(config.run.model)
    examples = sft_targets(
        tokenizer,
        config.run.prompt,
        data=config.data,
        problems=None if config.data else problems_from("train-data", config.run.train_data),
        filter_correct=config.filter_correct,
        unique_examples=config.unique_examples,
        append_eos=config.append_eos,
        seed=config.run.seed,
    )
    with reading_model(config.run.model):
        check_lengths(examples, AutoConfig.from_pretrained(config.run.model).max_position_embeddings)
    return tuple(examples)


def train_sft(config: SFTConfig, examples: Sequence[TokenExample], session: Session) -> None:
    """Fine-tune, with an evaluation and a line of metrics on the way.

    Args:
        config: how.
        examples: what to imitate.
        session: the policy, its engine, its record.
    """
    if session.progress.step == 0:
        session.sync_engine(session.eval_problems)
        session.evaluate(0)
    session.engine.sleep()
    began = monotonic()
    for step, result in sft_steps(session.learner, examples, config.sft, config.run.seed, session.progress.step):
        session.record.log("train", step, step_metrics(result), {"step_seconds": monotonic() - began})
        if session.evaluation_due(step):
            session.sync_engine(session.eval_problems)
            session.evaluate(step)
            session.engine.sleep()
        if session.end_step(step):
            return
        began = monotonic()


def sft_steps(
    learner: Learner,
    examples: Sequence[TokenExample],
    config: SFTStepsConfig,
    seed: int,
    start: int = 0,
    inspect_first: Callable[[Sequence[int], StepResult], None] = lambda *_: None,
) -> Iterator[tuple[int, StepResult]]:
    """Fine-tune a policy, one optimiser step at a time.

    Args:
        learner: the policy.
        examples: what to imitate.
        config: how.
        seed: of the order.
        start: steps that are done already.
        inspect_first: looks at the first step's result, with the positions of its examples, before the policy is
            changed; it may raise.

    Yields:
        The number of steps done, and what the last one did.
    """
    steps = config.steps(len(examples))
    batches_an_epoch = steps // config.epochs
    for step in range(start, steps):
        epoch, place = divmod(step, batches_an_epoch)
        order = shuffled(len(examples), seed, epoch)[place * config.batch_size : (place + 1) * config.batch_size]
        batch = [examples[row] for row in order]
        weights = constant_weights(torch.tensor([len(e.response_ids) for e in batch]), config.normalize_constant)
        learning_rate = warmup_cosine(step, steps, round(config.warmup_share * steps), learner.config.learning_rate)
        inspect = partial(inspect_first, order) if step == 0 else _accept
        losses = _negative_log_likelihood(batch, weights)
        yield step + 1, learner.step(batch, weights, losses, learning_rate, inspect=inspect)


def _accept(_: StepResult) -> None: ...


def _negative_log_likelihood(batch: Sequence[TokenExample], weights: Tensor) -> TokenLossOf:
    """Each token's -w_i log pi, with w_i of its sequence."""

    def token_loss_of(rows: Microbatch) -> Any:
        lengths = torch.tensor([len(batch[row].response_ids) for row in rows])
        token_weights = weights[rows].repeat_interleave(lengths)
        return lambda log_probs, at: -token_weights[at].to(log_probs) * log_probs

    return token_loss_of
