"""Does the rollout engine hold the policy that the trainer thinks it holds?

A sync can be skipped, miss a tied head, or leave a prefix cache that was computed from older weights; rollouts then
come from a stale policy, training goes on, and nothing looks wrong but the curves. So after every `load_policy` the
engine has to prove three things: the version it was given, the sums of the weights where they lie, and, on one batch,
log-probs that agree with the trainer's.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cs336_alignment.rollout.engine import Completion, RolloutEngine, Sampling, weight_sum

PROOF_TOKENS = 16
"""Tokens sampled a prompt: enough for every layer, position and the head to have its say."""

Score = Callable[[Sequence[str], Sequence[Completion]], Sequence[Tensor]]
"""(prompts, completions) -> the trainer's log-prob of every sampled token."""


class StalePolicyError(RuntimeError):
    """The engine does not hold the trainer's weights."""


@dataclass(frozen=True)
class Proof:
    """How far apart engine and trainer are on the proof's batch, in nats a token."""

    proof_mean_difference: float
    proof_largest_difference: float


def prove_policy(
    engine: RolloutEngine,
    weights: Iterable[tuple[str, Tensor]],
    version: int,
    prompts: Sequence[str],
    score: Score,
    seed: int,
    temperature: float = 1.0,
) -> Proof:
    """Check an engine after `load_policy`.

    In float32 no token's log-probs may differ by more than 1e-3; vLLM and transformers were seen 5e-5 apart. In
    bfloat16 the mean over all tokens may not exceed 0.1; 0.04 was seen, and single tokens 0.6 apart.

    Args:
        engine: what is to be checked.
        weights: the items of the trainer's state dict.
        version: the one given to `load_policy`.
        prompts: a few that rollouts use; of 128 tokens or more where a stale prefix cache is to be found on a CPU.
        score: the trainer's log-probs, at `temperature`.
        seed: of the proof's sampling.
        temperature: that rollouts are sampled at.

    Raises:
        StalePolicyError: the engine holds something else; the message says what gave it away.
    """
    if engine.policy_version != version:
        raise StalePolicyError(f"the rollout engine holds policy version {engine.policy_version}, not {version}")
    in_bfloat16 = engine.description["dtype"] == "bfloat16"
    _check_sums(engine.held_weights(), weights, torch.bfloat16 if in_bfloat16 else torch.float32)
    sampling = Sampling(temperature=temperature, max_tokens=PROOF_TOKENS, stop=(), seed=seed)
    completions = [drawn[0] for drawn in engine.generate(prompts, sampling)]
    trainer = torch.cat(list(score(prompts, completions))).double().cpu().numpy()
    sampler = np.array([log_prob for completion in completions for log_prob in completion.log_probs])
    difference = np.abs(trainer - sampler)
    proof = Proof(float(difference.mean()), float(difference.max()))
    apart = proof.proof_mean_difference > 0.1 if in_bfloat16 else proof.proof_largest_difference > 1e-3
    if apart or not np.isfinite(difference).all():
        raise StalePolicyError(
            f"after loading policy version {version} the rollout engine's log-probs differ from the trainer's by "
            f"{proof.proof_mean_difference:.2g} nats a token on average and {proof.proof_largest_difference:.2g} at "
            "most: it samples from other weights, or from a prefix cache of older ones"
        )
    return proof


def _check_sums(held: dict[str, float], weights: Iterable[tuple[str, Tensor]], dtype: torch.dtype) -> None:
    compared = 0
    for name, tensor in weights:
        if name in held:
            ours = tensor.detach().to(dtype)
            expected, size = weight_sum(ours), ours.double().abs().sum().item()
            if not abs(held[name] - expected) <= 1e-9 * size:
                raise StalePolicyError(
                    f"the rollout engine's {name} sums to {held[name]!r}, the trainer's {expected!r}"
                )
            compared += 1
    if not compared:
        raise StalePolicyError(f"the rollout engine holds none of the trainer's weights by name, but {list(held)[:3]}")
