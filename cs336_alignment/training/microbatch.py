"""The loss of one microbatch and its backward pass: the only place that calls `.backward()`.

Every sequence weighs 1 / train_batch_size, whichever microbatch it is in, so any split of the batch accumulates the
same gradient. The handout's two steps are the equal split: train_batch_size is the microbatch's size times
gradient_accumulation_steps.
"""

from jaxtyping import Float, Shaped
from torch import Tensor

from cs336_alignment.numerics.masking import masked_mean, masked_normalize
from cs336_alignment.numerics.policy_gradient import compute_policy_gradient_loss


def backward_sequence_losses(sequence_losses: Float[Tensor, "batch"], train_batch_size: int) -> Float[Tensor, ""]:
    """Accumulate the gradient of this microbatch's part of the batch mean.

        loss = sum_i sequence_losses_i / train_batch_size

    Args:
        sequence_losses: one loss a sequence.
        train_batch_size: the sequences of the whole optimiser step, over all microbatches and ranks.

    Returns:
        The loss, detached; over all microbatches these sum to the batch's mean loss.
    """
    loss = sequence_losses.sum() / train_batch_size
    loss.backward()
    return loss.detach()


def sft_sequence_losses(
    policy_log_probs: Float[Tensor, "batch seq"],
    response_mask: Shaped[Tensor, "batch seq"],
    normalize_constant: float = 1.0,
) -> Float[Tensor, "batch"]:
    """Negative log-likelihood of each response.

        loss_i = -sum_t mask_it * log pi(y_it | x_i, y_i<t) / normalize_constant

    Source: handout, section 4.2; the mean over the batch is `backward_sequence_losses`'s part.
    """
    return -masked_normalize(policy_log_probs, response_mask, normalize_constant, dim=1)


def sft_microbatch_train_step(
    policy_log_probs: Float[Tensor, "batch seq"],
    response_mask: Shaped[Tensor, "batch seq"],
    gradient_accumulation_steps: int,
    normalize_constant: float = 1.0,
) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """Forward and backward of one SFT microbatch.

    Args:
        policy_log_probs: log-probabilities of the labels, with gradient.
        response_mask: bool or 0/1; true where the label is a response token.
        gradient_accumulation_steps: microbatches of this size in an optimiser step.
        normalize_constant: divides each sequence's sum.

    Returns:
        The loss, detached and already divided for accumulation, and metadata: `response_tokens`, how many it covers.

    Source: handout, problem sft_microbatch_train_step.
    """
    losses = sft_sequence_losses(policy_log_probs, response_mask, normalize_constant)
    loss = backward_sequence_losses(losses, len(losses) * gradient_accumulation_steps)
    return loss, {"response_tokens": response_mask.sum()}


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
    losses = masked_mean(token_losses, mask, dim=1).where(mask.any(dim=1), 0.0)
    loss = backward_sequence_losses(losses, len(losses) * gradient_accumulation_steps)
    metadata["response_tokens"] = mask.sum()
    if "clipped" in metadata:
        metadata["clip_fraction"] = masked_mean(metadata["clipped"].float(), mask)
    return loss, metadata
