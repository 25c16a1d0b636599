"""Does the rollout engine hold the policy that the trainer thinks it holds?

A sync can be skipped, miss a tied head, or leave a prefix cache that was computed from older weights; rollouts then
come from a stale policy, training goes on, and nothing looks wrong but the curves. So after every `load_policy` the
engine has to prove three things: the version it was given, the sums of the weights where they lie, and, on one batch,
log-probs that agree with the trainer's. A proof that fails names the causes that it can tell apart.

The proof's batch is small, and some faults show at real batch sizes alone. So `check_sampler` compares engine and
trainer once more, over every token that is trained on.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from cs336_alignment.rollout.engine import Completion, RolloutEngine, Sampling, WeightSum

PROOF_TOKENS = 16
"""Tokens sampled a prompt: enough for every layer, position and the head to have its say."""

SCALES = tuple(2 ** (step / 8) for step in range(-24, 25) if step)
"""Of logits, that a failed proof tries out: from an eighth to eight."""

Score = Callable[[Sequence[str], Sequence[Completion], float], Sequence[Tensor]]
"""(prompts, completions, scale) -> the trainer's log-prob of every sampled token, its logits times the scale."""

Agree = Callable[[str | None], str | None]
"""What this rank found wrong -> what the first rank that found something did, the same on every rank."""


class StalePolicyError(RuntimeError):
    """The engine does not hold the trainer's weights, or does not compute with them what the trainer does."""


class SamplerDifferenceError(RuntimeError):
    """The engine's log-probs of what was trained on are too far from the trainer's."""


@dataclass(frozen=True)
class Limits:
    """How far apart engine and trainer may be, in nats a token. For a log-prob below -1 nat the difference is taken
    relative to it: a diverged policy has log-probs of hundreds of nats, with their rounding.

    Attributes:
        proof_mean, proof_largest: over the tokens of the proof.
        alarm, mean: over all tokens of a train batch; from `alarm` on the run warns, beyond `mean` it stops.
        sequence: mean over one response of 64 tokens or more. A fault at large batches spoils some of them.
    """

    proof_mean: float
    proof_largest: float
    alarm: float
    mean: float
    sequence: float

    def of_response(self, tokens: int) -> float:
        """The limit of the mean over one response: wider for a short one, as the noise of a mean is, and none below 16
        tokens, where a single unlikely token decides it."""
        return math.inf if tokens < 16 else self.sequence * math.sqrt(64 / min(tokens, 64))


LIMITS = {
    # vLLM and transformers were seen 6e-6 apart on average, and 5e-5 at most.
    "float32": Limits(proof_mean=1e-3, proof_largest=1e-3, alarm=1e-4, mean=1e-3, sequence=1e-2),
    # Seen: 0.04 on average for a model of 135 M, single tokens 0.6 apart; public reports call 0.01 to 0.02 healthy.
    "bfloat16": Limits(proof_mean=0.1, proof_largest=float("inf"), alarm=0.05, mean=0.1, sequence=0.2),
}


@dataclass(frozen=True)
class Proof:
    """How far apart engine and trainer are on the proof's batch, in nats a token."""

    proof_mean_difference: float
    proof_largest_difference: float


def prove_policy(
    engine: RolloutEngine,
    expected: Mapping[str, WeightSum],
    version: int,
    prompts: Sequence[str],
    score: Score,
    seed: int,
    temperature: float = 1.0,
    agree: Agree = lambda problem: problem,
) -> Proof:
    """Check an engine after `load_policy`. Every rank comes here, and all raise where one does.

    Args:
        engine: what is to be checked.
        expected: checksums of the trainer's weights in the engine's dtype, by their names in its state dict.
        version: the one given to `load_policy`.
        prompts: a few that rollouts use; of 128 tokens or more where a stale prefix cache is to be found on a CPU.
        score: the trainer's log-probs, at `temperature`.
        seed: of the proof's sampling.
        temperature: that rollouts are sampled at.
        agree: brings the ranks' findings together; the default is that of one rank.

    Raises:
        StalePolicyError: the engine holds something else, or computes something else from it; the message says what
            gave it away and, of the causes that can be told apart, which it is.
    """
    problem = agree(_other_version(engine, version) or _other_weights(engine.held_weights(), expected))
    if problem is not None:
        raise StalePolicyError(problem)
    sampling = Sampling(temperature=temperature, max_tokens=PROOF_TOKENS, stop=(), seed=seed)
    trial = _Trial.sample(engine, prompts, sampling)
    difference = trial.difference(score)
    limits = LIMITS[engine.dtype]
    mine = None if _within(difference, limits) else _apart(difference, version)
    problem = agree(mine)
    if problem is not None:
        cause = _cause(trial, score, limits, lambda: _Trial.sample(engine, prompts, sampling), engine.forget_prompts)
        raise StalePolicyError(f"{problem}: {agree(cause if mine else None)}")
    return Proof(float(difference.mean()), float(difference.max()))


def check_sampler(
    dtype: str, trainer: Sequence[Tensor], sampler: Sequence[Sequence[float]], skipped: int = 0
) -> "SamplerCheck":
    """Compare engine and trainer over the tokens of a train batch.

    Args:
        dtype: the engine's.
        trainer, sampler: log-probs of each sequence's response tokens, in nats.
        skipped: tokens at the beginning of each sequence that are left out: where EOS could not be sampled
            (`min_tokens`), the engine's distribution is rightly another than the trainer's.
    """
    pairs = [
        (np.asarray(ours, dtype=np.float64)[skipped:], np.asarray(theirs, dtype=np.float64)[skipped:])
        for ours, theirs in zip(trainer, sampler, strict=True)
    ]
    relative = [_relative(ours, theirs) for ours, theirs in pairs]
    tokens = np.concatenate(relative) if relative else np.zeros(0)
    if not len(tokens):
        return SamplerCheck()
    limits = LIMITS[dtype]
    means = [float(values.mean()) if len(values) else 0.0 for values in relative]
    mean = float(tokens.mean())
    apart = [row for row, value in enumerate(means) if not value <= limits.of_response(len(relative[row]))]
    stops = bool(apart) or not mean <= limits.mean
    offending = apart or [int(np.argmax(means))]
    return SamplerCheck(mean, alarm=mean > limits.alarm, stops=stops, offending=offending if stops else [])


@dataclass(frozen=True)
class SamplerCheck:
    """What `check_sampler` found.

    Attributes:
        mean: of the differences, in nats a token, relative for log-probs below -1; None where there was no token.
        alarm, stops: whether to warn, and whether training on these tokens must not go on.
        offending: positions of the sequences that are furthest apart, where it must not.
    """

    mean: float | None = None
    alarm: bool = False
    stops: bool = False
    offending: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class _Trial:
    """The proof's batch, as the engine sampled it."""

    prompts: Sequence[str]
    completions: Sequence[Completion]

    @classmethod
    def sample(cls, engine: RolloutEngine, prompts: Sequence[str], sampling: Sampling) -> "_Trial":
        return cls(prompts, [drawn[0] for drawn in engine.generate(prompts, sampling)])

    def trainer(self, score: Score, scale: float = 1.0) -> Float64[np.ndarray, "tokens"]:
        return torch.cat(list(score(self.prompts, self.completions, scale))).double().cpu().numpy()

    def difference(self, score: Score, scale: float = 1.0) -> Float64[np.ndarray, "tokens"]:
        sampler = np.array([value for completion in self.completions for value in completion.log_probs])
        return _relative(self.trainer(score, scale), sampler)


def _cause(
    trial: _Trial, score: Score, limits: Limits, sample_again: Callable[[], _Trial], forget_prompts: Callable[[], None]
) -> str:
    """Why the log-probs differ although the sums agree: each cause is tried out, on every rank."""
    trainer, again = trial.trainer(score), trial.trainer(score)
    difference = trial.difference(score)
    apart_by_scale = {scale: trial.difference(score, scale).mean() for scale in SCALES}
    forget_prompts()
    without_cache = sample_again().difference(score)
    nearest = min(apart_by_scale, key=lambda scale: apart_by_scale[scale])
    if not np.allclose(trainer, again, rtol=0, atol=1e-3):
        return "the trainer's own log-probs differ from one pass to the next: dropout, or another random layer, is on"
    if _within(without_cache, limits):
        return "it kept keys and values that were computed from older weights (its prefix cache was not reset)"
    if apart_by_scale[nearest] < 0.2 * difference.mean():
        return f"its logits are the trainer's times about {nearest:.2g}, as by another temperature or logit scale"
    if np.abs(trainer).max() > 100:
        return "the log-probs themselves are extreme: the policy has diverged, and rounding alone sets the two apart"
    return (
        "the sums of the weights that it holds by name agree, so it holds others in an older version (a tied head "
        "that was left out) or in other places, or computes another architecture than the trainer"
    )


def _other_version(engine: RolloutEngine, version: int) -> str | None:
    if engine.policy_version == version:
        return None
    return f"the rollout engine holds policy version {engine.policy_version}, not {version}"


def _other_weights(held: dict[str, list[WeightSum]], expected: Mapping[str, WeightSum]) -> str | None:
    compared = [name for name in expected if name in held]
    if not compared:
        return f"the rollout engine holds none of the trainer's weights by name, but {list(held)[:3]}"
    for name in compared:
        ours, theirs = expected[name], held[name]
        # A rank that has fewer numbers has a shard; otherwise each has them all.
        sharded = theirs[0].numel < ours.numel
        totals = [sum(part.total for part in theirs)] if sharded else [part.total for part in theirs]
        for total in totals:
            if not abs(total - ours.total) <= 1e-9 * ours.magnitude:
                return f"the rollout engine holds other weights: its {name} sums to {total!r}, not {ours.total!r}"
    return None


def _apart(difference: Float64[np.ndarray, "tokens"], version: int) -> str:
    return (
        f"after loading policy version {version} the rollout engine's log-probs differ from the trainer's by "
        f"{difference.mean():.2g} nats a token on average and {difference.max():.2g} at most"
    )


def _within(difference: Float64[np.ndarray, "tokens"], limits: Limits) -> bool:
    return bool(difference.mean() <= limits.proof_mean and difference.max() <= limits.proof_largest)


def _relative(trainer: np.ndarray, sampler: np.ndarray) -> np.ndarray:
    return np.abs(trainer - sampler) / np.maximum(1.0, np.abs(trainer))
