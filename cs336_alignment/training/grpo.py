"""Group relative policy optimisation (handout section 7, problem grpo_train_loop; Shao et al. 2024, DeepSeekMath).

    for step = 1 .. n_grpo_steps:
        sample questions; sample a group of G responses to each from the current policy; grade them
        A_i = (r_i - mean of its group) / (std of its group + eps)
        for each epoch over the rollout batch, for each train batch in it:
            take a gradient step on the clipped, importance-weighted advantages

Beyond the handout: asymmetric clipping, other aggregations, a KL penalty, dynamic sampling of groups and truncated
importance sampling are options, all off by default. Rollouts that get no gradient are not run in training.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from time import monotonic
from typing import Any, Literal

import torch
from torch import Tensor

from cs336_alignment.numerics.advantages import group_normalized_advantages, reward_statistics
from cs336_alignment.numerics.aggregation import constant_weights, sequence_mean_weights, token_mean_weights
from cs336_alignment.numerics.log_probs import TokenLoss
from cs336_alignment.numerics.policy_gradient import (
    LossType,
    compute_grpo_clip_loss,
    compute_policy_gradient_loss,
    k3_divergence,
    truncated_importance_weights,
)
from cs336_alignment.rollout.engine import Sampling, derive_seed
from cs336_alignment.tasks.problem import Problem
from cs336_alignment.training.alarms import collapse_alarms
from cs336_alignment.training.batching import Microbatch
from cs336_alignment.training.learner import OptimizerConfig, StepResult
from cs336_alignment.training.metrics import over_updates, rollout_metrics, step_metrics
from cs336_alignment.training.packing import TokenExample
from cs336_alignment.training.rollouts import Rollout
from cs336_alignment.training.session import ROLLOUTS, QuestionStream, RunConfig, Session, problems_to_ask, shuffled

Aggregation = Literal["sequence_mean", "constant", "token_mean"]


@dataclass(frozen=True)
class GRPOConfig:
    """GRPO. The defaults are the handout's."""

    run: RunConfig = field(default_factory=RunConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    n_grpo_steps: int = 200
    """Rollout batches."""
    rollout_batch_size: int = 256
    """Responses a step, over all questions."""
    group_size: int = 8
    """Responses to one question."""
    min_tokens: int = 4
    """Shortest response: an empty one breaks the loss."""
    epochs_per_rollout_batch: int = 1
    """Times that each rollout is trained on; 1 with equal batch sizes is on-policy."""
    train_batch_size: int = 256
    """Responses an optimiser step."""
    loss_type: LossType = "reinforce_with_baseline"
    """no_baseline, reinforce_with_baseline, grpo_clip (off-policy), or grpo_no_clip."""
    cliprange: float = 0.2
    """Epsilon of grpo_clip."""
    cliprange_high: float | None = None
    """Epsilon above 1 (DAPO: 0.28); default: --cliprange."""
    aggregation: Aggregation = "sequence_mean"
    """Token losses to batch loss: mean of each sequence (GRPO), sum over --max-tokens (Dr. GRPO), mean over all tokens
    (DAPO)."""
    normalize_by_std: bool = True
    """Divide advantages by the group's standard deviation (GRPO); not in Dr. GRPO."""
    advantage_eps: float = 1e-6
    """Added to the standard deviation."""
    kl_coef: float = 0.0
    """Weight of the k3 estimate of the KL divergence from the initial policy, which then stays in memory."""
    importance_cap: float | None = None
    """Truncated importance sampling between trainer and engine: the largest weight, for instance 2."""
    dynamic_sampling_rounds: int = 1
    """Sample further questions, so many rounds at most, until no group's rewards are all equal (DAPO)."""
    keep_completions_every: int = 10
    """Steps between those whose rollouts are written down."""

    def __post_init__(self) -> None:
        accumulation = self.optimizer.gradient_accumulation_steps
        if self.group_size < 2:
            raise ValueError("group_size must be at least 2")
        whole = ("n_grpo_steps", "rollout_batch_size", "train_batch_size", "epochs_per_rollout_batch")
        for name in (*whole, "dynamic_sampling_rounds", "keep_completions_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("cliprange", "cliprange_high", "importance_cap", "advantage_eps"):
            if getattr(self, name) is not None and getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if self.kl_coef < 0:
            raise ValueError(f"kl_coef must not be negative, got {self.kl_coef}")
        checks = {
            "rollout_batch_size must be a multiple of group_size": self.rollout_batch_size % self.group_size == 0,
            "train_batch_size must be a multiple of gradient_accumulation_steps": (
                accumulation is None or self.train_batch_size % accumulation == 0
            ),
            "train_batch_size must be at least group_size": self.train_batch_size >= self.group_size,
            "rollout_batch_size must be a multiple of train_batch_size": (
                self.rollout_batch_size % self.train_batch_size == 0
            ),
            "min_tokens must be between 0 and max_tokens": 0 <= self.min_tokens <= self.run.max_tokens,
        }
        for requirement, holds in checks.items():
            if not holds:
                raise ValueError(requirement)

    @property
    def n_prompts_per_rollout_batch(self) -> int:
        return self.rollout_batch_size // self.group_size

    @property
    def sequences_per_step(self) -> int:
        return self.train_batch_size

    @property
    def sequences_sampled(self) -> int:
        return self.rollout_batch_size

    def longest_example(self) -> int:
        return self.run.longest_rollout

    @property
    def shorten(self) -> str:
        return "lower --max-tokens"

    @property
    def keeps_reference(self) -> bool:
        """A KL term needs the initial policy."""
        return self.kl_coef != 0

    @property
    def on_policy(self) -> bool:
        """One optimiser step a rollout batch: the ratio is 1, and the old log-probs are the new ones."""
        return self.epochs_per_rollout_batch == 1 and self.train_batch_size == self.rollout_batch_size


@dataclass(frozen=True)
class TrainBatch:
    """Rollouts with all that their loss needs; the fields run in parallel.

    Attributes:
        rollouts: the rollouts.
        advantages: float64 (rollouts,).
        old_log_probs: under the policy that was current when they were sampled; empty where a sequence gets no
            gradient; None on-policy.
        reference_log_probs: under the initial policy; None without a KL term.
    """

    rollouts: Sequence[Rollout]
    advantages: Tensor
    old_log_probs: Sequence[Tensor] | None = None
    reference_log_probs: Sequence[Tensor] | None = None

    def __getitem__(self, rows: Sequence[int]) -> "TrainBatch":
        def pick(values: Any) -> Any:
            return None if values is None else [values[row] for row in rows]

        return TrainBatch(
            pick(self.rollouts), self.advantages[list(rows)], pick(self.old_log_probs), pick(self.reference_log_probs)
        )

    def describe(self, row: int) -> dict[str, Any]:
        """All that the loss of a rollout depends on, beside its tokens, for the file of a step that failed."""
        rollout = self.rollouts[row]
        return {
            "reward": rollout.reward,
            "advantage": self.advantages[row].item(),
            "sampler_log_probs": rollout.sampler_log_probs,
            "old_log_probs": self.old_log_probs[row].tolist() if self.old_log_probs else None,
            "reference_log_probs": self.reference_log_probs[row].tolist() if self.reference_log_probs else None,
        }


def run_grpo(config: GRPOConfig) -> bool:
    """The whole command: data, policy, engine, training; False where it was asked to stop before its end."""
    problems = problems_to_ask("train-data", config.run.train_data, config.run)
    eval_problems = problems_to_ask("eval-data", config.run.eval_data, config.run)
    with Session(
        config,
        config.run,
        config.optimizer,
        eval_problems,
        steps=config.n_grpo_steps,
        keep_reference=config.keeps_reference,
    ) as session:
        train_grpo(config, problems, session)
        return session.progress.step == config.n_grpo_steps


def train_grpo(config: GRPOConfig, problems: Sequence[Problem], session: Session) -> None:
    """Run GRPO.

    Args:
        config: how.
        problems: the training questions.
        session: the policy, its engine, its record.
    """
    questions = QuestionStream(problems, config.run.seed)
    for step in range(session.progress.step + 1, config.n_grpo_steps + 1):
        if step == 1:
            session.sync_engine(problems)
            session.evaluate(0)
        began = monotonic()
        proof = session.sync_engine(problems)
        sample = sample_groups(config, questions, session, step)
        rollouts = sample.chosen
        session.engine.sleep()
        sampled = monotonic()

        advantages = group_normalized_advantages(
            _rewards(rollouts), config.group_size, config.advantage_eps, config.normalize_by_std
        )
        batch = TrainBatch(rollouts, advantages)
        if not config.on_policy:
            batch = replace(batch, old_log_probs=score(config, batch, session.learner.score))
        if config.kl_coef:
            batch = replace(batch, reference_log_probs=score(config, batch, session.reference_log_probs))
        updates = [update(config, part, session, step) for part in train_batches(config, batch, step)]

        metrics: dict[str, Any] = {
            **rollout_metrics(sample.all_sampled),
            **reward_statistics(_rewards(sample.all_sampled), config.group_size),
            **asdict(proof),
            **over_updates(updates),
            "sampling_rounds": sample.rounds,
        }
        metrics["alarms"] = collapse_alarms(metrics)
        timing = {"rollout_seconds": sampled - began, "train_seconds": monotonic() - sampled}
        session.record.log("train", step, metrics, timing)
        for alarm in metrics["alarms"]:
            session.record.warn(f"step {step}: {alarm}")
        if step % config.keep_completions_every == 0 or step == 1:
            session.record.completions(f"rollouts_step_{step}", map(asdict, rollouts))
        if session.evaluation_due(step):
            session.sync_engine(problems)
            session.evaluate(step)
        if session.end_step(step):
            return


@dataclass(frozen=True)
class Sample:
    """What a step sampled.

    Attributes:
        chosen: the rollout batch, group after group.
        all_sampled: the same with the groups that dynamic sampling passed over; what the step's metrics describe.
        rounds: of sampling.
    """

    chosen: list[Rollout]
    all_sampled: list[Rollout]
    rounds: int


def sample_groups(config: GRPOConfig, questions: QuestionStream, session: Session, step: int) -> Sample:
    """Sample a rollout batch.

    With dynamic sampling, groups whose rewards are all equal give way to those of further questions; where the rounds
    do not suffice, the first of them fill the batch up.

    Source: DAPO (Yu et al. 2025), section 3.2.
    """
    sampled: list[Rollout] = []
    useful: list[list[Rollout]] = []
    constant: list[list[Rollout]] = []
    wanted = config.n_prompts_per_rollout_batch
    round_number = 0
    while len(useful) < wanted and round_number < config.dynamic_sampling_rounds:
        round_number += 1
        asked = questions.take(session.progress.questions_used, wanted)
        session.progress.questions_used += wanted
        sampling = Sampling(
            temperature=config.run.temperature,
            max_tokens=config.run.max_tokens,
            min_tokens=config.min_tokens,
            n=config.group_size,
            seed=derive_seed(config.run.seed, ROLLOUTS, step, round_number),
        )
        rollouts = session.sample(asked, sampling)
        if config.dynamic_sampling_rounds == 1:
            return Sample(rollouts, rollouts, rounds=1)
        sampled += rollouts
        for start in range(0, len(rollouts), config.group_size):
            group = rollouts[start : start + config.group_size]
            (useful if len({rollout.reward for rollout in group}) > 1 else constant).append(group)
    chosen = (useful + constant)[:wanted]
    return Sample([rollout for group in chosen for rollout in group], sampled, round_number)


def _rewards(rollouts: Sequence[Rollout]) -> Tensor:
    return torch.tensor([rollout.reward for rollout in rollouts], dtype=torch.float64)


def score(
    config: GRPOConfig, batch: TrainBatch, score_examples: Callable[[list[TokenExample], Tensor], list[Tensor]]
) -> list[Tensor]:
    """Log-probs of a rollout batch, a train batch at a time, so that microbatches are as large as in training."""
    scores = []
    for start in range(0, len(batch.rollouts), config.train_batch_size):
        part = batch[range(start, start + config.train_batch_size)]
        scores += score_examples([rollout.example for rollout in part.rollouts], sequence_weights(config, part))
    return scores


def train_batches(config: GRPOConfig, batch: TrainBatch, step: int) -> Iterator[TrainBatch]:
    """The train batches of every epoch, in each of them the groups in another order; groups stay together, for the sake
    of their prompt, and rollouts keep their advantages."""
    size = config.group_size
    n_groups = len(batch.rollouts) // size
    for epoch in range(config.epochs_per_rollout_batch):
        groups = range(n_groups) if config.on_policy else shuffled(n_groups, derive_seed(config.run.seed, step), epoch)
        order = [size * group + member for group in groups for member in range(size)]
        for start in range(0, len(order), config.train_batch_size):
            yield batch[order[start : start + config.train_batch_size]]


def update(config: GRPOConfig, batch: TrainBatch, session: Session, step: int) -> dict[str, Any]:
    """One optimiser step on one train batch, and its metrics."""
    examples = [rollout.example for rollout in batch.rollouts]
    weights = sequence_weights(config, batch)
    losses = TokenLosses(config, batch, weights, session.ranks.device)
    guard = session.sampler_guard(config.min_tokens)
    differences: list[float | None] = []

    def compare(result: StepResult) -> None:
        differences.append(guard.check(step, batch.rollouts, of_sampling_policy(batch, result)).mean)

    result = session.learner.step(examples, weights, losses, describe=batch.describe, inspect=compare)
    metrics = {**step_metrics(result), "sampler_difference": differences[0]}
    if batch.old_log_probs is not None:
        metrics |= off_policy_metrics(config, batch, result)
    return metrics | correction_metrics(config, batch, result)


def of_sampling_policy(batch: TrainBatch, result: StepResult) -> list[Tensor | None]:
    """The trainer's log-probs under the policy that sampled, of each sequence that was run."""
    trainer = batch.old_log_probs or result.log_probs
    return [None if ran is None else scores for scores, ran in zip(trainer, result.log_probs, strict=True)]


def sequence_weights(config: GRPOConfig, batch: TrainBatch) -> Tensor:
    """The aggregation's weight of each sequence, over the whole train batch; 0 for one that can get no gradient."""
    lengths = torch.tensor([rollout.length for rollout in batch.rollouts])
    if config.aggregation == "sequence_mean":
        weights = sequence_mean_weights(lengths)
    elif config.aggregation == "constant":
        weights = constant_weights(lengths, config.run.max_tokens)
    else:
        weights = token_mean_weights(lengths)
    return weights if config.kl_coef else weights.where(_signal(config, batch) != 0, 0.0)


def _signal(config: GRPOConfig, batch: TrainBatch) -> Tensor:
    """What multiplies each sequence's log-probs: without it no gradient."""
    if config.loss_type == "no_baseline":
        return _rewards(batch.rollouts)
    return batch.advantages


@dataclass(frozen=True)
class TokenLosses:
    """The weighted losses of a train batch's tokens, microbatch by microbatch."""

    config: GRPOConfig
    batch: TrainBatch
    weights: Tensor
    device: torch.device

    def __call__(self, rows: Microbatch) -> TokenLoss:
        config, part = self.config, self.batch[rows]
        lengths = torch.tensor([rollout.length for rollout in part.rollouts])

        def of_sequences(values: Tensor) -> Tensor:
            return values.repeat_interleave(lengths).unsqueeze(1).to(self.device)

        def of_tokens(values: Sequence[Tensor] | None) -> Tensor | None:
            return None if values is None else torch.cat(list(values)).unsqueeze(1).to(self.device)

        weights, signal = of_sequences(self.weights[rows]), of_sequences(_signal(config, part))
        old, reference = of_tokens(part.old_log_probs), of_tokens(part.reference_log_probs)
        sampler = of_tokens([torch.tensor(rollout.sampler_log_probs) for rollout in part.rollouts])

        def token_loss(log_probs: Tensor, at: slice) -> Tensor:
            # Every token is a row of its own, of one token, in the handout's shapes.
            policy = log_probs.unsqueeze(1)
            old_here = policy.detach() if old is None else old[at]
            factor = signal[at].to(policy)
            losses, _ = compute_policy_gradient_loss(
                policy, config.loss_type, factor, factor, old_here, config.cliprange, config.cliprange_high
            )
            if config.importance_cap is not None and sampler is not None:
                losses = losses * truncated_importance_weights(old_here, sampler[at], config.importance_cap)
            if config.kl_coef and reference is not None:
                losses = losses + config.kl_coef * k3_divergence(policy, reference[at])
            return (losses * weights[at].to(policy)).squeeze(1)

        return token_loss


def off_policy_metrics(config: GRPOConfig, batch: TrainBatch, result: StepResult) -> dict[str, float]:
    """How far the policy is from the one that sampled, over the response tokens of the sequences that were run."""
    assert batch.old_log_probs is not None
    rows = [row for row, scores in enumerate(result.log_probs) if scores is not None]
    if not rows:
        return {}
    lengths = torch.tensor([batch.rollouts[row].length for row in rows])
    policy = torch.cat([scores for scores in result.log_probs if scores is not None]).double().unsqueeze(1)
    old = torch.cat([batch.old_log_probs[row] for row in rows]).double().unsqueeze(1)
    advantages = batch.advantages[rows].repeat_interleave(lengths).unsqueeze(1)
    _, metadata = compute_grpo_clip_loss(advantages, policy, old, config.cliprange, config.cliprange_high)
    return {
        "clip_fraction": metadata["clipped"].double().mean().item() if config.loss_type == "grpo_clip" else 0.0,
        "log_ratio": (policy - old).mean().item(),
        "approximate_kl": k3_divergence(old, policy).mean().item(),
    }


def correction_metrics(config: GRPOConfig, batch: TrainBatch, result: StepResult) -> dict[str, float]:
    """What the KL term and truncated importance sampling see, where they are on, over the response tokens of the
    sequences that were run."""
    rows = [row for row, scores in enumerate(result.log_probs) if scores is not None]
    if not rows:
        return {}

    def tokens(values: Sequence[Any]) -> Tensor:
        return torch.cat([torch.as_tensor(values[row], dtype=torch.float64) for row in rows])

    metrics = {}
    if batch.reference_log_probs is not None:
        divergence = k3_divergence(tokens(result.log_probs), tokens(batch.reference_log_probs))
        metrics["reference_kl"] = divergence.mean().item()
    if config.importance_cap is not None:
        sampler = tokens([rollout.sampler_log_probs for rollout in batch.rollouts])
        weights = truncated_importance_weights(
            tokens(batch.old_log_probs or result.log_probs), sampler, config.importance_cap
        )
        metrics["importance_weight"] = weights.mean().item()
        metrics["importance_truncated"] = (weights == config.importance_cap).double().mean().item()
    return metrics
