"""Per-token policy-gradient losses (handout section 7). All are to be minimised; none averages or masks.

Notation: A the advantage of a response (or its raw reward), the same for each of its tokens; log pi the log-probability
of a sampled token under the policy being trained, log pi_old under the policy that sampled it; rho = pi / pi_old.
"""

from typing import Literal, TypeVar, get_args

import torch
from jaxtyping import Float
from torch import Tensor

LossType = Literal["no_baseline", "reinforce_with_baseline", "grpo_clip", "grpo_no_clip"]

T = TypeVar("T")

MAX_LOG_RATIO = 20.0
"""Importance ratios stop at e^20, about 5e8, far below overflow: inf times a zero advantage would be NaN."""


def compute_naive_policy_gradient_loss(
    raw_rewards_or_advantages: Float[Tensor, "batch 1"],
    policy_log_probs: Float[Tensor, "batch seq"],
) -> Float[Tensor, "batch seq"]:
    """REINFORCE, token by token.

        loss_t = -A * log pi(o_t | q, o_{<t})

    Source: handout, problem compute_naive_policy_gradient_loss; Williams 1992.
    """
    return -raw_rewards_or_advantages * policy_log_probs


def compute_grpo_clip_loss(
    advantages: Float[Tensor, "batch 1"],
    policy_log_probs: Float[Tensor, "batch seq"],
    old_log_probs: Float[Tensor, "batch seq"],
    cliprange: float,
    cliprange_high: float | None = None,
) -> tuple[Float[Tensor, "batch seq"], dict[str, Tensor]]:
    """GRPO's clipped surrogate, token by token.

        loss_t = -min(rho_t * A, clip(rho_t, 1 - cliprange, 1 + cliprange_high) * A)

    Args:
        advantages: (batch, 1), one a response.
        policy_log_probs, old_log_probs: (batch, seq), in nats; only the first carries gradient.
        cliprange: epsilon, for instance 0.2.
        cliprange_high: epsilon above 1, for instance 0.28: unlikely tokens may gain more (DAPO, Yu et al. 2025,
            equation 10, "clip-higher"). None is `cliprange`, as in PPO and GRPO.

    Returns:
        The loss, (batch, seq), and metadata: `clipped`, bool (batch, seq), true where the clipped branch is strictly
        lower, so that the token gets no gradient.

    Source: handout, problem compute_grpo_clip_loss; DeepSeekMath equation 3 without the KL term; Schulman et al. 2017.
    """
    ratio = _importance_ratio(policy_log_probs, old_log_probs)
    unclipped = ratio * advantages
    upper = 1.0 + (cliprange if cliprange_high is None else cliprange_high)
    clipped = ratio.clamp(1.0 - cliprange, upper) * advantages
    return -torch.minimum(unclipped, clipped), {"clipped": clipped < unclipped}


def compute_grpo_no_clip_loss(
    advantages: Float[Tensor, "batch 1"],
    policy_log_probs: Float[Tensor, "batch seq"],
    old_log_probs: Float[Tensor, "batch seq"],
) -> Float[Tensor, "batch seq"]:
    """The importance-weighted loss without clipping.

        loss_t = -rho_t * A

    Source: handout, problem grpo_off_policy_clip_ablation.
    """
    return -_importance_ratio(policy_log_probs, old_log_probs) * advantages


def compute_policy_gradient_loss(
    policy_log_probs: Float[Tensor, "batch seq"],
    loss_type: str,
    raw_rewards: Float[Tensor, "batch 1"] | None = None,
    advantages: Float[Tensor, "batch 1"] | None = None,
    old_log_probs: Float[Tensor, "batch seq"] | None = None,
    cliprange: float | None = None,
    cliprange_high: float | None = None,
) -> tuple[Float[Tensor, "batch seq"], dict[str, Tensor]]:
    """One of the losses above, by name, with its metadata.

    | loss_type               | loss                               | needs                                |
    |-------------------------|------------------------------------|--------------------------------------|
    | no_baseline             | compute_naive_policy_gradient_loss | raw_rewards                          |
    | reinforce_with_baseline | compute_naive_policy_gradient_loss | advantages                           |
    | grpo_clip               | compute_grpo_clip_loss             | advantages, old_log_probs, cliprange |
    | grpo_no_clip            | compute_grpo_no_clip_loss          | advantages, old_log_probs            |

    `cliprange_high` is grpo_clip's alone, and may be left out.

    Raises:
        ValueError: an unknown loss type, or an argument it needs is None; the message names it.

    Source: handout, problem compute_policy_gradient_loss.
    """

    def needed(name: str, value: T | None) -> T:
        if value is None:
            raise ValueError(f"loss_type {loss_type!r} needs {name}")
        return value

    if loss_type == "no_baseline":
        return compute_naive_policy_gradient_loss(needed("raw_rewards", raw_rewards), policy_log_probs), {}
    if loss_type not in get_args(LossType):
        raise ValueError(f"unknown loss_type {loss_type!r}; choose one of {', '.join(get_args(LossType))}")
    advantages = needed("advantages", advantages)
    if loss_type == "reinforce_with_baseline":
        return compute_naive_policy_gradient_loss(advantages, policy_log_probs), {}
    old_log_probs = needed("old_log_probs", old_log_probs)
    if loss_type == "grpo_no_clip":
        return compute_grpo_no_clip_loss(advantages, policy_log_probs, old_log_probs), {}
    cliprange = needed("cliprange", cliprange)
    return compute_grpo_clip_loss(advantages, policy_log_probs, old_log_probs, cliprange, cliprange_high)


def k3_divergence(
    policy_log_probs: Float[Tensor, "*shape"], reference_log_probs: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    """An estimate of KL(pi || pi_ref) at each sampled token: never negative, unbiased in expectation over pi's samples.

        k3_t = exp(d_t) - d_t - 1,  d_t = log pi_ref - log pi

    Source: DeepSeekMath equation 4; Schulman 2020, "Approximating KL divergence".
    """
    distance = (reference_log_probs - policy_log_probs).clamp(max=MAX_LOG_RATIO)
    return distance.exp() - distance - 1.0


def truncated_importance_weights(
    trainer_log_probs: Float[Tensor, "*shape"], sampler_log_probs: Float[Tensor, "*shape"], cap: float
) -> Float[Tensor, "*shape"]:
    """Weights that undo the difference between the policy that was meant to sample and the engine that did.

        w_t = min(pi_trainer / pi_sampler, cap), without gradient

    The rollout engine's log-probs differ from the trainer's by its kernels' rounding, and in bfloat16 by a lot more.

    Source: Yao et al. 2025, "Your efficient RL framework secretly brings you off-policy RL training".
    """
    return (trainer_log_probs - sampler_log_probs).detach().clamp(max=MAX_LOG_RATIO).exp().clamp(max=cap)


def _importance_ratio(policy_log_probs: Tensor, old_log_probs: Tensor) -> Tensor:
    return (policy_log_probs - old_log_probs).clamp(max=MAX_LOG_RATIO).exp()
