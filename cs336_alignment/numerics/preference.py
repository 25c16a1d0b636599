"""Losses on preference pairs (Rafailov et al. 2023, Direct Preference Optimization)."""

import torch
from jaxtyping import Float
from torch import Tensor


def dpo_loss(
    policy_chosen: Float[Tensor, "*batch"],
    policy_rejected: Float[Tensor, "*batch"],
    reference_chosen: Float[Tensor, "*batch"],
    reference_rejected: Float[Tensor, "*batch"],
    beta: float,
) -> Float[Tensor, "*batch"]:
    """The DPO loss of each pair, from summed log-probabilities of whole responses.

        -log sigmoid(beta * [(log pi(y_w|x) - log pi_ref(y_w|x)) - (log pi(y_l|x) - log pi_ref(y_l|x))])

    with y_w the chosen and y_l the rejected response.

    Source: equation 7 of the paper.
    """
    chosen = policy_chosen - reference_chosen
    rejected = policy_rejected - reference_rejected
    return -torch.nn.functional.logsigmoid(beta * (chosen - rejected))
