"""Log-probabilities and entropy of a language model's next-token distribution (handout section 4).

Two paths. The plain one, `get_response_log_probs`, is the handout's: it holds all logits, (tokens x vocabulary). The
chunked one starts from the hidden states, runs the output head on some rows at a time, and never holds more logits
than `LOGITS_CHUNK_BYTES`. It has two doors:

    chunked_log_probs    differentiable log-probs and entropy; the backward pass computes the logits a second time
    chunked_token_loss   for a loss that sums a function of each token's own log-prob: its gradient is formed while a
                         chunk's logits are at hand, so nothing is computed twice

Half-precision logits are taken to float32 first: a log-probability of -10 in bf16 is known to two digits only. So is
the head's gradient, of which every chunk adds a part: parts below a 256th of a bf16 sum would not change it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

LOGITS_CHUNK_BYTES = {"cpu": 2**28, "cuda": 2**30}
"""The chunked path's one large buffer: 441 rows of float32 logits at Qwen2.5's 151,936 tokens on a CPU, 1,766 on a GPU.
Every chunk reads and writes the gradient of the whole head once, 0.93 GB there, so that few large chunks are faster
than many small ones."""

BLOCK_BYTES = {"cpu": 2**20, "cuda": 2**26}
"""What lies between the matrix products is done a block of rows at a time, with two or three buffers of this size: on a
CPU they stay in its cache, on a GPU they are large enough to keep it busy."""

TokenLoss = Callable[[Float[Tensor, "tokens"], slice], Float[Tensor, "tokens"]]
"""(log-probs of some tokens, their place among all tokens) -> the loss of each, weighted as it enters the sum."""


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


def chunked_log_probs(
    hidden: Float[Tensor, "tokens hidden"],
    head_weight: Float[Tensor, "vocab hidden"],
    labels: Int[Tensor, "tokens"],
    temperature: float = 1.0,
    vocab_size: int | None = None,
) -> tuple[Float[Tensor, "tokens"], Float[Tensor, "tokens"]]:
    """Log-probability of each label, and entropy of each distribution, without holding all logits.

        z_t = sampling_logits(W h_t);  log p(label_t) = z_t[label_t] - logsumexp(z_t)

    Under autocast the matrix products run in its dtype; everything else in float32, or float64 for float64 inputs.

    Args:
        hidden: the transformer's last hidden states, one row a token that is to be predicted.
        head_weight: the output head.
        labels: int64 (tokens,).
        temperature, vocab_size: as `sampling_logits` takes them.

    Returns:
        Log-probs and entropy, (tokens,), in nats, both differentiable in `hidden` and `head_weight`.
    """
    head = _Head(head_weight, temperature, vocab_size, _product_dtype(hidden))
    return _ChunkedLogProbs.apply(hidden, head_weight, labels, head)  # type: ignore[no-any-return]


def chunked_token_loss(
    hidden: Float[Tensor, "tokens hidden"],
    head_weight: Float[Tensor, "vocab hidden"],
    labels: Int[Tensor, "tokens"],
    token_loss: TokenLoss,
    temperature: float = 1.0,
    vocab_size: int | None = None,
) -> tuple[Float[Tensor, ""], Float[Tensor, "tokens"], Float[Tensor, "tokens"]]:
    """The sum over tokens of a function of each token's log-prob, without holding all logits or computing them twice.

        L = sum_t f_t(log p_t);   dL/dz_t = f_t'(log p_t) (onehot(label_t) - p_t) / temperature

    Args:
        hidden, head_weight, labels, temperature, vocab_size: as `chunked_log_probs` takes them.
        token_loss: f, for some tokens at a time; a token's loss must depend on its own log-prob alone.

    Returns:
        The loss, differentiable in `hidden` and `head_weight`, and the log-probs and entropy, which are not.
    """
    head = _Head(head_weight, temperature, vocab_size, _product_dtype(hidden))
    return _ChunkedTokenLoss.apply(hidden, head_weight, labels, head, token_loss)  # type: ignore[no-any-return]


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

    Returns:
        A new tensor, or `logits` itself where nothing is to be done.

    Raises:
        ValueError: the temperature is not positive.
    """
    if temperature <= 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    logits = _at_least_float32(logits)
    if temperature != 1:
        logits = logits / temperature
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


def _product_dtype(hidden: Tensor) -> torch.dtype:
    device = hidden.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype


@dataclass
class _Scores:
    """Some rows behind the head. `weights` and `shifted` are buffers of (rows, vocab): use them up in place."""

    log_probs: Tensor
    entropy: Tensor
    weights: Tensor
    shifted: Tensor
    log_normalizer: Tensor

    def logit_gradient(self, labels: Tensor, by_log_prob: Tensor, by_entropy: Tensor | None) -> Tensor:
        """g (onehot - p) - g_H p (log p + H), written into `weights`."""
        factor = -by_log_prob.unsqueeze(1)
        if by_entropy is not None:
            log_p_plus_entropy = self.shifted.add_((self.entropy - self.log_normalizer).unsqueeze(1))
            factor = factor - log_p_plus_entropy.mul_(by_entropy.unsqueeze(1))
        gradient = self.weights.mul_(factor / self.log_normalizer.exp().unsqueeze(1))
        return gradient.scatter_add_(1, labels.unsqueeze(1), by_log_prob.unsqueeze(1))


class _Head:
    """The output head: matrix products a chunk of rows at a time, in `dtype`; what lies between them a block of rows at
    a time, in float32 or better."""

    def __init__(self, weight: Tensor, temperature: float, vocab_size: int | None, dtype: torch.dtype) -> None:
        self.temperature, self.vocab_size, self.dtype = temperature, vocab_size, dtype
        self._weight = weight.detach().to(dtype)
        self._gradient_dtype = torch.promote_types(weight.dtype, torch.float32)
        row = len(weight) * torch.empty((), dtype=torch.promote_types(dtype, torch.float32)).element_size()
        self._chunk_rows = max(1, LOGITS_CHUNK_BYTES[weight.device.type] // row)
        self._block_rows = max(1, BLOCK_BYTES[weight.device.type] // row)

    def chunks(self, hidden: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Some rows, and the head's product with them: chunk after chunk in one buffer, for the caller to use up."""
        buffer = hidden.new_empty(min(self._chunk_rows, len(hidden)), len(self._weight), dtype=self.dtype)
        for at in _slices(0, len(hidden), self._chunk_rows):
            products = buffer[: at.stop - at.start]
            torch.mm(hidden[at].to(self.dtype), self._weight.T, out=products)
            yield at, products

    def blocks(self, at: slice, products: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """A chunk, block by block."""
        return zip(_slices(at.start, at.stop, self._block_rows), products.split(self._block_rows), strict=True)

    def scores(self, products: Tensor, labels: Tensor) -> _Scores:
        logits = sampling_logits(products, self.temperature, self.vocab_size)
        largest, index = logits.max(dim=1, keepdim=True)
        shifted = logits - largest
        weights = shifted.exp()
        # As in _shift: the largest term, 1, stays out of the sum, so that log1p keeps the digits of the rest.
        log_normalizer = weights.scatter_(1, index, 0.0).sum(dim=1).log1p()
        weights.scatter_(1, index, 1.0)
        log_probs = shifted.gather(1, labels.unsqueeze(1)).squeeze(1) - log_normalizer
        shifted.clamp_(min=-1e30)  # -inf times a weight of 0 would be NaN
        distance = -torch.bmm(weights.unsqueeze(1), shifted.unsqueeze(2)).flatten()
        entropy = log_normalizer + distance / log_normalizer.exp()
        return _Scores(log_probs, entropy, weights, shifted, log_normalizer)

    def zero_gradient(self) -> Tensor:
        """Where the chunks' parts of dL/dweight add up: float32 or better, also for a weight in half precision."""
        return torch.zeros_like(self._weight, dtype=self._gradient_dtype)

    def backward_chunk(self, gradient: Tensor, hidden: Tensor, grad_hidden: Tensor, grad_weight: Tensor | None) -> None:
        """From a chunk's dL/dz to its rows of dL/dhidden, and its part of dL/dweight."""
        grad_hidden.copy_(gradient @ self._weight)
        if grad_weight is not None and grad_weight.dtype == self.dtype:
            grad_weight.addmm_(gradient.T, hidden)
        elif grad_weight is not None:
            grad_weight.add_(gradient.T @ hidden.to(self.dtype))


class _ChunkedLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, head: _Head) -> tuple[Tensor, Tensor]:
        log_probs = hidden.new_empty(len(labels), dtype=torch.promote_types(head.dtype, torch.float32))
        entropy = torch.empty_like(log_probs)
        with torch.autocast(hidden.device.type, enabled=False):
            for at, products in head.chunks(hidden):
                for rows, block in head.blocks(at, products):
                    scores = head.scores(block, labels[rows])
                    log_probs[rows], entropy[rows] = scores.log_probs, scores.entropy
        ctx.head = head
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(hidden, weight, labels)
        return log_probs, entropy

    @staticmethod
    def backward(  # type: ignore[override]
        ctx: Any, by_log_prob: Tensor | None, by_entropy: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, None, None]:
        if by_log_prob is None:
            if by_entropy is None:
                return None, None, None, None
            by_log_prob = torch.zeros_like(by_entropy)
        hidden, weight, labels = ctx.saved_tensors
        head, scale = ctx.head, 1 / ctx.head.temperature
        grad_hidden = torch.empty_like(hidden)
        grad_weight = head.zero_gradient() if ctx.needs_input_grad[1] else None
        for at, products in head.chunks(hidden):
            for rows, block in head.blocks(at, products):
                by_entropy_here = None if by_entropy is None else by_entropy[rows] * scale
                scores = head.scores(block, labels[rows])
                block.copy_(scores.logit_gradient(labels[rows], by_log_prob[rows] * scale, by_entropy_here))
            head.backward_chunk(products, hidden[at], grad_hidden[at], grad_weight)
        return grad_hidden, None if grad_weight is None else grad_weight.to(weight.dtype), None, None


class _ChunkedTokenLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, head: _Head, token_loss: TokenLoss
    ) -> tuple[Tensor, Tensor, Tensor]:
        log_probs = hidden.new_empty(len(labels), dtype=torch.promote_types(head.dtype, torch.float32))
        entropy = torch.empty_like(log_probs)
        loss = log_probs.new_zeros(())
        grad_hidden = torch.empty_like(hidden) if any(ctx.needs_input_grad[:2]) else None
        grad_weight = head.zero_gradient() if ctx.needs_input_grad[1] else None
        with torch.autocast(hidden.device.type, enabled=False):
            for at, products in head.chunks(hidden):
                for rows, block in head.blocks(at, products):
                    scores = head.scores(block, labels[rows])
                    log_probs[rows], entropy[rows] = scores.log_probs, scores.entropy
                    block_loss, slope = _value_and_slope(token_loss, scores.log_probs, rows)
                    loss += block_loss
                    if grad_hidden is not None:
                        block.copy_(scores.logit_gradient(labels[rows], slope / head.temperature, None))
                if grad_hidden is not None:
                    head.backward_chunk(products, hidden[at], grad_hidden[at], grad_weight)
        ctx.gradients, ctx.weight_dtype = (grad_hidden, grad_weight), weight.dtype
        ctx.mark_non_differentiable(log_probs, entropy)
        return loss, log_probs, entropy

    @staticmethod
    def backward(ctx: Any, by_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        gradients, ctx.gradients = ctx.gradients, None  # the last reference, so that no copy is made of it
        grad_hidden, grad_weight = (gradient if gradient is None else gradient.mul_(by_loss) for gradient in gradients)
        return grad_hidden, None if grad_weight is None else grad_weight.to(ctx.weight_dtype), None, None, None


def _value_and_slope(token_loss: TokenLoss, log_probs: Tensor, at: slice) -> tuple[Tensor, Tensor]:
    """sum_t f_t(log p_t), and f_t'(log p_t) of each token."""
    with torch.enable_grad():
        leaf = log_probs.detach().requires_grad_()
        losses = token_loss(leaf, at)
        (slope,) = torch.autograd.grad(losses.sum(), leaf)
    return losses.detach().sum(), slope


def _slices(start: int, stop: int, size: int) -> Iterator[slice]:
    return (slice(first, min(first + size, stop)) for first in range(start, stop, size))
