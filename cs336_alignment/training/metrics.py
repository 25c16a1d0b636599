"""What a training step logs. The README's glossary has each name with its formula and its population."""

from collections.abc import Sequence
from statistics import mean
from typing import Any

import torch

from cs336_alignment.training.learner import StepResult
from cs336_alignment.training.rollouts import Rollout


def rollout_metrics(rollouts: Sequence[Rollout]) -> dict[str, float | None]:
    """Means over all rollouts of a step: rewards, lengths, truncation; and the entropy that their samples show."""
    correct = [rollout.length for rollout in rollouts if rollout.reward]
    incorrect = [rollout.length for rollout in rollouts if not rollout.reward]
    return {
        "reward": mean(rollout.reward for rollout in rollouts),
        "format_reward": mean(rollout.format_reward for rollout in rollouts),
        "answer_reward": mean(rollout.answer_reward for rollout in rollouts),
        "mean_length": mean(rollout.length for rollout in rollouts),
        "mean_length_correct": mean(correct) if correct else None,
        "mean_length_incorrect": mean(incorrect) if incorrect else None,
        "truncation_rate": mean(rollout.finish_reason == "length" for rollout in rollouts),
        "rollout_entropy": -sum(sum(rollout.sampler_log_probs) for rollout in rollouts)
        / max(1, sum(rollout.length for rollout in rollouts)),
    }


def step_metrics(result: StepResult) -> dict[str, Any]:
    """What every optimiser step logs."""
    entropies = [entropy for entropy in result.entropy if entropy is not None]
    tokens = torch.cat(entropies) if entropies else torch.zeros(0)
    return {
        "loss": result.loss,
        "grad_norm": result.grad_norm,
        "entropy": tokens.mean().item() if len(tokens) else None,
        "response_tokens": len(tokens),
        "sequences_run": result.sequences_run,
        "tokens_run": result.tokens_run,
    }


def over_updates(updates: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The metrics of several optimiser steps as one step's: sums of counts, the mean loss and gradient norm, and of all
    that is a mean over response tokens the mean over the tokens of all of them."""
    metrics: dict[str, Any] = {}
    for name in dict.fromkeys(name for update in updates for name in update):
        known = [update for update in updates if update.get(name) is not None]
        if name in ("response_tokens", "sequences_run", "tokens_run"):
            metrics[name] = sum(update[name] for update in known)
        else:
            weights = [1 if name in ("loss", "grad_norm") else update["response_tokens"] for update in known]
            total = sum(weight * update[name] for weight, update in zip(weights, known, strict=True))
            metrics[name] = total / sum(weights) if known else None
    return metrics
