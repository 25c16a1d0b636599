"""Direct preference optimisation (supplementary handout; Rafailov et al. 2023)."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from cs336_alignment.numerics.log_probs import get_response_log_probs
from cs336_alignment.numerics.masking import masked_normalize
from cs336_alignment.numerics.preference import dpo_loss
from cs336_alignment.numerics.tokenization import collate_prompt_and_output, padding_id
from cs336_alignment.prompts import alpaca_template, fill


def compute_per_instance_dpo_loss(
    lm: Any,
    lm_ref: Any,
    tokenizer: Any,
    beta: float,
    prompt: str,
    response_chosen: str,
    response_rejected: str,
) -> Float[Tensor, ""]:
    """The DPO loss of one preference pair, with gradient into `lm` alone.

    Prompt and responses go through the Alpaca template, and each response ends in EOS.

    Args:
        lm, lm_ref: Hugging Face causal language models, the policy and the reference; they may be on two devices.
        tokenizer: their tokenizer.
        beta: strength of the pull to the reference, for instance 0.1.
        prompt: the instruction.
        response_chosen, response_rejected: the preferred and the other response.

    Returns:
        A scalar on the device of `lm`.

    Source: the supplementary handout, problem dpo_loss.
    """
    template = fill(alpaca_template(), instruction=prompt, response="")
    prompt_ids = tokenizer(template)["input_ids"]
    response_ids = [
        [*tokenizer(response, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        for response in (response_chosen, response_rejected)
    ]
    pair = collate_prompt_and_output([prompt_ids, prompt_ids], response_ids, padding_id(tokenizer))
    policy = _response_log_probs(lm, pair)
    with torch.no_grad():
        reference = _response_log_probs(lm_ref, pair).to(policy.device)
    return dpo_loss(policy[0], policy[1], reference[0], reference[1], beta)


def _response_log_probs(model: Any, pair: dict[str, Tensor]) -> Float[Tensor, "2"]:
    """log pi(y|x) of the chosen and of the rejected response: the sum over their tokens."""
    device = next(model.parameters()).device
    tensors = {name: tensor.to(device) for name, tensor in pair.items()}
    log_probs = get_response_log_probs(model, tensors["input_ids"], tensors["labels"])["log_probs"]
    return masked_normalize(log_probs, tensors["response_mask"], 1.0, dim=1)
