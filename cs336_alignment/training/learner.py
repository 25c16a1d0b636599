"""One optimiser step, and one scoring pass, over a train batch: the part that every algorithm shares.

    examples, their weights, a token loss  ->  microbatches  ->  gradients  ->  clip  ->  AdamW

Rows whose weight is zero are not run: they would add nothing to the gradient.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributed.tensor import DTensor

from cs336_alignment.numerics.log_probs import TokenLoss
from cs336_alignment.ranks import Ranks
from cs336_alignment.run_folder import write_json_lines
from cs336_alignment.training.batching import Microbatch, split_by_size, split_by_tokens
from cs336_alignment.training.distributed import Sharding, add_gradients, free_whole_weights, spread
from cs336_alignment.training.microbatch import backward_microbatch
from cs336_alignment.training.packing import PackedBatch, TokenExample, pack
from cs336_alignment.training.policy import Policy, TokenScores

TOKEN_BUDGET = 4096
"""Of a microbatch, where nothing else was chosen: long enough to keep a GPU busy."""

TokenLossOf = Callable[[Microbatch], TokenLoss]
"""Positions in the train batch -> the weighted loss of their tokens, laid end to end in that order."""


class NonFiniteLossError(RuntimeError):
    """The loss or its gradient is inf or NaN; the message names the file that holds the step's batch."""


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW, and how a train batch is split. The defaults are the handout's for GRPO."""

    learning_rate: float = 1e-5
    """Peak of the schedule. The handout's 1e-5 was tuned for bfloat16 weights, which swallow small updates; the weights
    here are float32, and a lower rate is better: 1e-6 to 6e-6 for GRPO at 1.5B (scripts/recipes has the sources)."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay rates of the moments."""
    weight_decay: float = 0.0
    """Decoupled from the gradient."""
    max_grad_norm: float = 1.0
    """The gradient of a step is scaled down to this norm."""
    token_budget: int | None = None
    """Longest packed microbatch, in tokens; the number of microbatches follows from it. Default: what fits into the
    GPU's memory, or 4,096 on a CPU."""
    gradient_accumulation_steps: int | None = None
    """The handout's split, in place of a token budget: microbatches of equal size in an optimiser step; fewer where
    some sequences are not run."""

    def __post_init__(self) -> None:
        for name in ("learning_rate", "max_grad_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must be at least 0 and below 1, got {self.betas}")
        if self.weight_decay < 0:
            raise ValueError(f"weight_decay must not be negative, got {self.weight_decay}")
        split = {name: getattr(self, name) for name in ("token_budget", "gradient_accumulation_steps")}
        for name, value in split.items():
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if None not in split.values():
            raise ValueError("give token_budget or gradient_accumulation_steps: each says how a train batch is split")


@dataclass(frozen=True)
class StepResult:
    """What a step says of itself, the same on every rank.

    Attributes:
        loss: of the whole train batch.
        grad_norm: before clipping.
        log_probs, entropy: for each example those of its response tokens before the step; None where it was not run.
        sequences_run, tokens_run: how many were; tokens count each row as packed.
    """

    loss: float
    grad_norm: float
    log_probs: list[Tensor | None]
    entropy: list[Tensor | None]
    sequences_run: int
    tokens_run: int


class Learner:
    """A policy and its optimiser, on one rank or several."""

    def __init__(
        self, policy: Policy, config: OptimizerConfig, ranks: Ranks, failures: Path, sharding: Sharding = "fsdp2"
    ) -> None:
        """Put the policy on its device, or its shards on theirs.

        Args:
            policy: what is trained.
            config: how.
            ranks: this process among its peers.
            failures: folder for the batch of a step that fails.
            sharding: of the policy, with several ranks.
        """
        self.config = config
        self.ranks = ranks
        self.policy = policy
        self._failures = failures
        spread(policy, policy.layers(), ranks, sharding, policy.compute_dtype)
        # After sharding, which puts other parameters in the place of the policy's.
        self.optimizer = torch.optim.AdamW(
            policy.parameters(),
            lr=config.learning_rate,
            betas=config.betas,
            weight_decay=config.weight_decay,
            fused=True,
        )
        self.steps_taken = 0

    def step(
        self,
        examples: Sequence[TokenExample],
        weights: Float[Tensor, "sequences"],
        token_loss_of: TokenLossOf,
        learning_rate: float | None = None,
        describe: Callable[[int], dict[str, Any]] = lambda _: {},
        inspect: Callable[[StepResult], None] = lambda _: None,
    ) -> StepResult:
        """Take one optimiser step on a train batch, the same batch on every rank.

        Args:
            examples: the batch.
            weights: of each example's tokens in the loss; examples with weight 0 are not run.
            token_loss_of: for the examples of a microbatch, the weighted loss of their tokens.
            learning_rate: of this step; None is the configured one.
            describe: for an example's position, what else its loss depends on: written down where the step fails.
            inspect: looks at the result before the policy is changed, and may raise.

        Raises:
            NonFiniteLossError: before the policy is changed.
        """
        plan = self._plan(examples, _rows_to_run(examples, weights))
        parts = [self._backward(examples, microbatch, token_loss_of) for microbatch in plan]
        add_gradients(self.policy, self.ranks)
        result = self._result(parts, len(examples))
        if not (math.isfinite(result.loss) and math.isfinite(result.grad_norm)):
            self._give_up(examples, weights, result, describe)
        inspect(result)
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate if learning_rate is None else learning_rate
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.steps_taken += 1
        return result

    @torch.no_grad()  # not inference_mode, under which FSDP2 cannot put parameters together
    def score(
        self,
        examples: Sequence[TokenExample],
        weights: Float[Tensor, "sequences"] | None = None,
        policy: Policy | None = None,
    ) -> list[Tensor]:
        """Log-probs of each example's response tokens, without gradient.

        Args:
            examples: the same on every rank, which share the work.
            weights: as in `step`; examples with weight 0 are not run, and their log-probs are empty. None runs all.
            policy: another than the one in training, such as a reference.
        """
        rows = _rows_to_run(examples, torch.ones(len(examples)) if weights is None else weights)
        parts = []
        policy = policy or self.policy
        for microbatch in self._plan(examples, rows):
            batch = _pack(examples, microbatch, self.ranks.device)
            parts.append(_Part(microbatch, batch.row_tokens, batch.lengths, policy(batch)))
        free_whole_weights(policy)
        log_probs, _ = self._by_example(parts, len(examples))
        return [torch.zeros(0) if scores is None else scores for scores in log_probs]

    def _plan(self, examples: Sequence[TokenExample], rows: list[int]) -> list[Microbatch]:
        """This rank's microbatches, as many as every other rank's."""
        if self.config.gradient_accumulation_steps is None:
            plan = split_by_tokens(examples, rows, self.config.token_budget or TOKEN_BUDGET, self.ranks.count)
        else:
            # The handout's size, also where some of the examples are not run.
            size = -(-len(examples) // self.config.gradient_accumulation_steps)
            plan = split_by_size(rows, size, self.ranks.count)
        return plan[self.ranks.index]

    def _backward(
        self, examples: Sequence[TokenExample], microbatch: Microbatch, token_loss_of: TokenLossOf
    ) -> "_Part":
        batch = _pack(examples, microbatch, self.ranks.device)
        token_loss = token_loss_of(microbatch) if microbatch else _no_loss
        scores = backward_microbatch(self.policy, batch, token_loss)
        return _Part(microbatch, batch.row_tokens if microbatch else 0, batch.lengths, scores)

    def _result(self, parts: Sequence["_Part"], size: int) -> StepResult:
        norm = torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.config.max_grad_norm)
        totals = [(part.scores.loss.item(), part.row_tokens) for part in parts]
        loss, tokens = map(sum, zip(*self.ranks.gather(totals), strict=True))
        log_probs, entropy = self._by_example(parts, size)
        return StepResult(
            loss=float(loss),
            grad_norm=float(norm.full_tensor() if isinstance(norm, DTensor) else norm),
            log_probs=log_probs,
            entropy=entropy,
            sequences_run=sum(scores is not None for scores in log_probs),
            tokens_run=int(tokens),
        )

    def _by_example(self, parts: Sequence["_Part"], size: int) -> tuple[list[Tensor | None], list[Tensor | None]]:
        """Log-probs and entropy of each example, from all ranks; None for one that was not run."""
        mine = []
        for part in parts:
            if part.microbatch:
                scores = (tokens.cpu().split(part.lengths) for tokens in (part.scores.log_probs, part.scores.entropy))
                # Copies: a view would take its microbatch's whole storage with it to the other ranks.
                mine += zip(part.microbatch, *(map(Tensor.clone, pieces) for pieces in scores), strict=True)
        log_probs: list[Tensor | None] = [None] * size
        entropy: list[Tensor | None] = [None] * size
        for row, log_prob, uncertainty in self.ranks.gather(mine):
            log_probs[row], entropy[row] = log_prob, uncertainty
        return log_probs, entropy

    def _give_up(
        self,
        examples: Sequence[TokenExample],
        weights: Tensor,
        result: StepResult,
        describe: Callable[[int], dict[str, Any]],
    ) -> None:
        path = self._failures / f"non_finite_step_{self.steps_taken}.jsonl"
        if self.ranks.is_main:
            write_json_lines(
                path,
                (
                    {
                        **asdict(example),
                        "weight": weights[row].item(),
                        "log_probs": None if scores is None else scores.tolist(),
                        **describe(row),
                    }
                    for row, (example, scores) in enumerate(zip(examples, result.log_probs, strict=True))
                ),
            )
        self.ranks.wait()  # a rank that raised would end the one that writes
        raise NonFiniteLossError(
            f"after {self.steps_taken} optimiser steps the loss is {result.loss} and its gradient's norm "
            f"{result.grad_norm}: the policy was left as it was, and the batch written to {path}. A lower learning "
            "rate, or clipping of the ratio, is the usual remedy; a rollout with a log-prob of -inf is another cause."
        )


@dataclass(frozen=True)
class _Part:
    """A microbatch that has been run."""

    microbatch: Microbatch
    row_tokens: int
    lengths: tuple[int, ...]
    scores: TokenScores


def _rows_to_run(examples: Sequence[TokenExample], weights: Tensor) -> list[int]:
    return [row for row, weight in enumerate(weights.tolist()) if weight != 0 and examples[row].response_ids]


def _pack(examples: Sequence[TokenExample], microbatch: Microbatch, device: torch.device) -> PackedBatch:
    """A microbatch as a row. An empty one, which keeps ranks in step, is a token that counts nowhere."""
    return pack([examples[row] for row in microbatch] or [TokenExample((0,), (0,))], device)


def _no_loss(log_probs: Tensor, _: slice) -> Tensor:
    return 0 * log_probs


def warmup_cosine(step: int, steps: int, warmup_steps: int, peak: float) -> float:
    """The learning rate of step 0 <= step < steps: linear up to the peak, then half a cosine down to 0.

    peak * (step + 1) / warmup                                     for step < warmup
    peak * (1 + cos(pi * (step - warmup) / (steps - warmup))) / 2  after it
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, steps - warmup_steps)
    return peak * (1 + math.cos(math.pi * progress)) / 2
