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
    return _entropy(*_shift(_at_least_float32(logits)))


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
    shifted, log_normalizer = _shift(_at_least_float32(model(input_ids).logits))
    result = {"log_probs": shifted.gather(-1, labels.unsqueeze(-1)).squeeze(-1) - log_normalizer}
    if return_token_entropy:
        result["token_entropy"] = _entropy(shifted, log_normalizer)
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


def _shift(logits: Tensor) -> tuple[Tensor, Tensor]:
    """z_v - z_max, and log sum_v exp(z_v - z_max), so that log p_v is their difference.

    The sum is 1 + rest, where rest leaves the largest logit out: log1p(rest) keeps all digits of a probability near 1,
    which log(1 + rest), and with it torch.log_softmax, rounds away.
    """
    largest, index = logits.max(dim=-1, keepdim=True)
    shifted = logits - largest
    rest = shifted.exp().scatter(-1, index, 0.0).sum(dim=-1)
    return shifted, rest.log1p()


def _entropy(shifted: Tensor, log_normalizer: Tensor) -> Tensor:
    """log sum_v e_v + sum_v e_v (z_max - z_v) / sum_v e_v: no term is negative, so nothing cancels."""
    # A token that cannot occur has e_v = 0 and z_v = -inf; its term is 0 in the limit, NaN in arithmetic.
    distance = -shifted.masked_fill(shifted == float("-inf"), 0.0)
    return log_normalizer + (shifted.exp() * distance).sum(dim=-1) / log_normalizer.exp()


def _at_least_float32(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
