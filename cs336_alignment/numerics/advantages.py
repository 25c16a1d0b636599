"""Group-normalised rewards, GRPO's advantages (handout section 7; Shao et al. 2024, DeepSeekMath, equation 3)."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor


def compute_group_normalized_rewards(
    reward_fn: Callable[[str, str], dict[str, float]],
    rollout_responses: Sequence[str],
    repeated_ground_truths: Sequence[str],
    group_size: int,
    advantage_eps: float,
    normalize_by_std: bool,
) -> tuple[Float[Tensor, "rollouts"], Float[Tensor, "rollouts"], dict[str, float]]:
    """Grade the rollouts and normalise their rewards within each group.

    Args:
        reward_fn: (response, ground truth) -> dict of `reward`, `format_reward`, `answer_reward`.
        rollout_responses: the responses, group after group: n_prompts * group_size of them.
        repeated_ground_truths: the gold answer of each response.
        group_size: responses to one question, at least 2.
        advantage_eps: added to the standard deviation.
        normalize_by_std: divide by the group's standard deviation (GRPO); otherwise only subtract the mean (Dr. GRPO).

    Returns:
        `advantages` and `raw_rewards`, float32 (rollouts,), and metadata: `reward_std`, `reward_min` and `reward_max`
        over all rollouts, the mean of each reward component, as in `format_reward_mean`, and `zero_std_groups`, the
        share of groups whose rewards are all the same.

    Raises:
        ValueError: the group size is below 2 or does not divide the number of responses, or there are not as many
            ground truths as responses.

    Source: handout, problem compute_group_normalized_rewards.
    """
    if len(rollout_responses) != len(repeated_ground_truths):
        raise ValueError(f"{len(rollout_responses)} responses but {len(repeated_ground_truths)} ground truths")
    graded = list(map(reward_fn, rollout_responses, repeated_ground_truths))
    rewards = torch.tensor([scores["reward"] for scores in graded], dtype=torch.float64)
    advantages = group_normalized_advantages(rewards, group_size, advantage_eps, normalize_by_std)
    metadata = reward_statistics(rewards, group_size)
    for component in graded[0]:
        metadata[f"{component}_mean"] = sum(scores[component] for scores in graded) / len(graded)
    return advantages.float(), rewards.float(), metadata


def reward_statistics(rewards: Float[Tensor, "rollouts"], group_size: int) -> dict[str, float]:
    """Spread of the rewards over all rollouts, and the share of groups whose rewards are all the same."""
    return {
        "reward_std": rewards.std().item(),
        "reward_min": rewards.min().item(),
        "reward_max": rewards.max().item(),
        "zero_std_groups": _is_constant(rewards.view(-1, group_size)).double().mean().item(),
    }


def group_normalized_advantages(
    rewards: Float[Tensor, "rollouts"],
    group_size: int,
    advantage_eps: float,
    normalize_by_std: bool,
) -> Float[Tensor, "rollouts"]:
    """Rewards to advantages, group by group.

        A_i = (r_i - mean(r)) / (std(r) + eps)    or    A_i = r_i - mean(r)

    `std` is the n-1 estimator. A group of equal rewards gets exactly 0, not the rounding error of its mean divided by
    eps: training skips such sequences.

    Raises:
        ValueError: the group size is below 2 or does not divide the number of rewards.

    Source: DeepSeekMath equation 3 with the normalisation; Liu et al. 2025 (Dr. GRPO) without.
    """
    if group_size < 2:
        raise ValueError(f"group_size is {group_size}: a group of one has no spread, so no advantage; use at least 2")
    if len(rewards) == 0 or len(rewards) % group_size:
        raise ValueError(f"{len(rewards)} rollouts cannot be split into groups of {group_size}")
    groups = rewards.view(-1, group_size)
    advantages = groups - groups.mean(dim=1, keepdim=True)
    if normalize_by_std:
        advantages = advantages / (groups.std(dim=1, keepdim=True) + advantage_eps)
    return advantages.masked_fill(_is_constant(groups), 0.0).flatten()


def _is_constant(groups: Tensor) -> Tensor:
    return groups.amax(dim=1, keepdim=True) == groups.amin(dim=1, keepdim=True)
