"""How token losses add up to a batch's loss: each choice is one weight a sequence, shared by all of its tokens.

    loss = sum_i w_i sum_t loss_it        i over the sequences of the whole train batch, t over response tokens

Weights depend on the whole batch and never on a microbatch, so every split of the batch gives the same gradient.
Sequences that are not run, because their advantage is zero, count in the weights of the others all the same. The
weights are float64, to be cast to the losses' dtype.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def sequence_mean_weights(lengths: Int[Tensor, "sequences"]) -> Float[Tensor, "sequences"]:
    """The mean over each sequence, then over the sequences: w_i = 1 / (sequences * length_i).

    A sequence without response tokens weighs 0 and still counts among the sequences.

    Source: DeepSeekMath equation 3; handout, problem grpo_microbatch_train_step (masked_mean).
    """
    weights = 1.0 / (len(lengths) * lengths.clamp(min=1).double())
    return weights.where(lengths > 0, 0.0)


def constant_weights(lengths: Int[Tensor, "sequences"], normalize_constant: float) -> Float[Tensor, "sequences"]:
    """The sum over each sequence divided by a constant, then the mean over the sequences: w_i = 1 / (sequences * C).

    Source: Dr. GRPO (Liu et al. 2025), with C the largest number of new tokens; handout, problem
    sft_microbatch_train_step (masked_normalize).
    """
    return torch.full(
        lengths.shape, 1.0 / (len(lengths) * normalize_constant), dtype=torch.float64, device=lengths.device
    )


def token_mean_weights(lengths: Int[Tensor, "sequences"]) -> Float[Tensor, "sequences"]:
    """The mean over all response tokens of the batch: w_i = 1 / sum_j length_j.

    Source: DAPO (Yu et al. 2025), equation 8.
    """
    return torch.ones_like(lengths, dtype=torch.float64) / lengths.sum().clamp(min=1)
