"""The loss of one microbatch and its backward pass: the only place that calls `.backward()`.

Every token's loss carries a weight that depends on the whole train batch alone (numerics/aggregation.py), applied
before the backward pass, so any split of the batch accumulates the same gradient. The loops call
`backward_microbatch`; the handout's two steps are the equal split, on log-probs that are at hand.
"""

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from cs336_alignment.numerics.aggregation import constant_weights, sequence_mean_weights
from cs336_alignment.numerics.log_probs import TokenLoss
from cs336_alignment.numerics.masking import masked_mean
from cs336_alignment.numerics.policy_gradient import compute_policy_gradient_loss
from cs336_alignment.training.packing import PackedBatch
from cs336_alignment.training.policy import Policy, TokenScores


def backward_microbatch(policy: Policy, batch: PackedBatch, token_loss: TokenLoss) -> TokenScores:
    """Forward and backward of packed examples; gradients add up in the policy.

    Args:
        policy: sharded or not.
        batch: the examples.
        token_loss: the weighted loss of each token, from its log-prob.

    Returns:
        Loss, log-probs and entropy, detached; over all microbatches and ranks the losses add up to the batch's.
    """
    scores = policy(batch, token_loss)
    scores.loss.backward()
    return TokenScores(scores.loss.detach(), scores.log_probs, scores.entropy)


def backward_token_losses(
    token_losses: Float[Tensor, "batch seq"],
    response_mask: Shaped[Tensor, "batch seq"],
    sequence_weights: Float[Tensor, "batch"],
) -> Float[Tensor, ""]:
    """The same for token losses on a padded batch: loss = sum_i w_i sum_t mask_it loss_it.

    Returns:
        The loss, detached; float32 where the token losses are in half precision.
    """
    dtype = torch.promote_types(token_losses.dtype, torch.float32)
    weights = sequence_weights.to(token_losses.device, dtype).unsqueeze(1)
    loss = (token_losses * weights).where(response_mask.bool(), 0.0).sum()
    loss.backward()
    return loss.detach()


def sft_microbatch_train_step(
    policy_log_probs: Float[Tensor, "batch seq"],
    response_mask: Shaped[Tensor, "batch seq"],
    gradient_accumulation_steps: int,
    normalize_constant: float = 1.0,
) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """Forward and backward of one SFT microbatch.

        loss_i = -sum_t mask_it * log pi(y_it | x_i, y_i<t) / normalize_constant

    Args:
        policy_log_probs: log-probabilities of the labels, with gradient.
        response_mask: bool or 0/1; true where the label is a response token.
        gradient_accumulation_steps: microbatches of this size in an optimiser step.
        normalize_constant: divides each sequence's sum.

    Returns:
        The loss, detached and already divided for accumulation, and metadata: `response_tokens`, how many it covers.

    Source: handout, problem sft_microbatch_train_step.
    """
    lengths = response_mask.bool().sum(dim=1)
    weights = constant_weights(lengths, normalize_constant) / gradient_accumulation_steps
    loss = backward_token_losses(-policy_log_probs, response_mask, weights)
    return loss, {"response_tokens": lengths.sum()}


def grpo_microbatch_train_step(
    policy_log_probs: Float[Tensor, "batch seq"],
    response_mask: Shaped[Tensor, "batch seq"],
    gradient_accumulation_steps: int,
    loss_type: str,
    raw_rewards: Float[Tensor, "batch 1"] | None = None,
    advantages: Float[Tensor, "batch 1"] | None = None,
    old_log_probs: Float[Tensor, "batch seq"] | None = None,
    cliprange: float | None = None,
) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """Forward and backward of one GRPO microbatch.

        loss_i = mean over the response tokens of sequence i of the per-token loss

    A sequence without response tokens has loss 0 and still counts in the mean over the batch.

    Args:
        policy_log_probs: log-probabilities of the labels, with gradient.
        response_mask: bool or 0/1; true where the label is a response token.
        gradient_accumulation_steps: microbatches of this size in an optimiser step.
        loss_type, raw_rewards, advantages, old_log_probs, cliprange: as `compute_policy_gradient_loss` takes them.

    Returns:
        The loss, detached and already divided for accumulation, and metadata: `response_tokens`, how many it covers,
        and the loss's own; for grpo_clip, `clipped` (batch, seq) and `clip_fraction`, its mean over response tokens.

    Raises:
        ValueError: as `compute_policy_gradient_loss`.

    Source: handout, problem grpo_microbatch_train_step.
    """
    mask = response_mask.bool()
    # Padding may hold anything, -inf and NaN included; a zero there keeps it out of the gradient of exp too.
    policy_log_probs = policy_log_probs.where(mask, 0.0)
    if old_log_probs is not None:
        old_log_probs = old_log_probs.where(mask, 0.0)
    token_losses, metadata = compute_policy_gradient_loss(
        policy_log_probs, loss_type, raw_rewards, advantages, old_log_probs, cliprange
    )
    weights = sequence_mean_weights(mask.sum(dim=1)) / gradient_accumulation_steps
    loss = backward_token_losses(token_losses, mask, weights)
    metadata["response_tokens"] = mask.sum()
    if "clipped" in metadata:
        metadata["clip_fraction"] = masked_mean(metadata["clipped"].float(), mask)
    return loss, metadata
