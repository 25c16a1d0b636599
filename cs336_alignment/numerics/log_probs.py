"""Log-probabilities and entropy of a language model's next-token distribution (handout section 4).

Half-precision logits are taken to float32 first: a log-probability of -10 in bf16 is known to two digits only.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor


def compute_entropy(logits: Float[Tensor, "batch seq vocab"]) -> Float[Tensor, "batch seq"]:
    """Entropy of each next-token distribution, in nats.

        H(p) = -sum_v p_v log p_v,  p = softmax(logits)

    Stable for logits of any finite size, and for -inf (a token that cannot occur adds 0, and gets no gradient).
    Half-precision logits give a float32 result.

    Source: handout, problem compute_entropy.
    """
    return _entropy(torch.log_softmax(_at_least_float32(logits), dim=-1))


def get_response_log_probs(
    model: Callable[..., Any],
    input_ids: Int[Tensor, "batch seq"],
    labels: Int[Tensor, "batch seq"],
    return_token_entropy: bool = False,
) -> dict[str, Float[Tensor, "batch seq"]]:
    """Log-probability of every label under the model, prompt and padding included: callers mask.

        log p(labels_t | input_ids_{<=t})

    No attention mask is passed: sequences are padded on the right, where causal attention never looks.

    Args:
        model: a Hugging Face causal language model; run as it is, with gradient where the caller enables it.
        input_ids, labels: int64 (batch, seq), as `tokenize_prompt_and_output` makes them.
        return_token_entropy: also return the entropy of each next-token distribution.

    Returns:
        `log_probs`, float32 or float64 (batch, seq), in nats; with `return_token_entropy` also `token_entropy`, alike.

    Source: handout, problem get_response_log_probs.
    """
    log_softmax = torch.log_softmax(_at_least_float32(model(input_ids).logits), dim=-1)
    result = {"log_probs": log_softmax.gather(-1, labels.unsqueeze(-1)).squeeze(-1)}
    if return_token_entropy:
        result["token_entropy"] = _entropy(log_softmax)
    return result


def sampling_logits(
    logits: Float[Tensor, "*batch vocab"],
    temperature: float = 1.0,
    vocab_size: int | None = None,
) -> Float[Tensor, "*batch vocab"]:
    """The logits of the distribution that a policy samples from, at least float32.

        logits / temperature,  and -inf from vocab_size on

    The one home of temperature and of the padded vocabulary: sampling and training must agree on both. Qwen2.5's output
    head has 151,936 rows, its tokenizer fewer tokens; a row without a token must not be sampled.

    Args:
        logits: the model's output.
        temperature: positive; greedy decoding takes the largest logit and needs no temperature.
        vocab_size: the tokenizer's length; None masks nothing.

    Raises:
        ValueError: the temperature is not positive.
    """
    if temperature <= 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    logits = _at_least_float32(logits) / temperature
    if vocab_size is not None and vocab_size < logits.shape[-1]:
        padding = torch.arange(logits.shape[-1], device=logits.device) >= vocab_size
        logits = logits.masked_fill(padding, float("-inf"))
    return logits


def _entropy(log_softmax: Tensor) -> Tensor:
    # A token of probability 0 may have log-probability -inf; its p log p is 0 in the limit, NaN in arithmetic.
    return -(log_softmax.exp() * log_softmax.masked_fill(log_softmax == float("-inf"), 0.0)).sum(dim=-1)


def _at_least_float32(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
