"""The library's equations once more, in float64 numpy, written from the handout and the papers and not from the code.

Losses come with their gradients worked out by hand.
"""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]


def log_softmax(logits: Array) -> Array:
    """log p_v = z_v - log sum_u exp z_u"""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def entropy(logits: Array) -> Array:
    """-sum_v p_v log p_v, summed over the tokens that can occur"""
    log_p = log_softmax(logits)
    p = np.exp(log_p)
    return -np.sum(np.multiply(p, log_p, where=p > 0, out=np.zeros_like(p)), axis=-1)


def entropy_gradient(logits: Array) -> Array:
    """dH/dz_v = -p_v (log p_v + H)"""
    log_p = log_softmax(logits)
    return -np.exp(log_p) * (log_p + entropy(logits)[..., None])


def masked_sum(values: Array, mask: Mask, axis: int | None) -> Array:
    """Element by element, so that nothing is shared with a where-and-sum."""
    total = np.zeros_like(values.sum(axis=axis))
    for position in np.argwhere(mask):
        where = tuple(np.delete(position, axis)) if axis is not None else ()
        total[where] += values[tuple(position)]
    return total


def masked_normalize(values: Array, mask: Mask, axis: int | None, constant: float) -> Array:
    return masked_sum(values, mask, axis) / constant


def masked_mean(values: Array, mask: Mask, axis: int | None) -> Array:
    with np.errstate(invalid="ignore"):
        return masked_sum(values, mask, axis) / masked_sum(np.ones_like(values), mask, axis)


def sft_step(log_probs: Array, mask: Mask, steps: int, constant: float) -> tuple[float, Array]:
    """L = -1/(B k c) sum_it m_it l_it, so dL/dl_it = -m_it / (B k c)"""
    scale = len(log_probs) * steps * constant
    return -log_probs[mask].sum() / scale, -mask.astype(np.float64) / scale


def group_normalized(rewards: Array, group_size: int, eps: float, by_std: bool) -> Array:
    """(r - mean) / (s + eps) with s^2 = sum (r - mean)^2 / (G - 1)"""
    advantages = []
    for start in range(0, len(rewards), group_size):
        group = rewards[start : start + group_size]
        centred = group - sum(group) / group_size
        s = np.sqrt(sum(centred**2) / (group_size - 1))
        advantages.extend(centred / (s + eps) if by_std else centred)
    return np.array(advantages)


def policy_gradient(
    loss_type: str, log_probs: Array, rewards: Array, advantages: Array, old: Array, cliprange: float
) -> tuple[Array, Array]:
    """Per-token loss and its derivative in the token's log-probability.

    REINFORCE: -A l, -A. Ratio r = exp(l - l_old): -A r, -A r. Clipped: the derivative vanishes where the clipped branch
    is the smaller one, that is for A > 0 above 1 + e and for A < 0 below 1 - e.
    """
    loss, gradient = np.zeros_like(log_probs), np.zeros_like(log_probs)
    for i, t in np.ndindex(*log_probs.shape):
        a = rewards[i, 0] if loss_type == "no_baseline" else advantages[i, 0]
        r = np.exp(log_probs[i, t] - old[i, t])
        if loss_type in ("no_baseline", "reinforce_with_baseline"):
            loss[i, t], gradient[i, t] = -a * log_probs[i, t], -a
        elif loss_type == "grpo_no_clip":
            loss[i, t], gradient[i, t] = -a * r, -a * r
        elif (a > 0 and r > 1 + cliprange) or (a < 0 and r < 1 - cliprange):
            loss[i, t] = -a * (1 + cliprange if a > 0 else 1 - cliprange)
        else:
            loss[i, t], gradient[i, t] = -a * r, -a * r
    return loss, gradient


def grpo_step(token_loss: Array, token_gradient: Array, mask: Mask, steps: int) -> tuple[float, Array]:
    """L = 1/(B k) sum_i 1/n_i sum_t m_it L_it with n_i response tokens; a row without any adds nothing"""
    counts = np.maximum(mask.sum(axis=1, keepdims=True), 1)
    weights = mask / (counts * len(mask) * steps)
    return float(np.sum(weights * np.where(mask, token_loss, 0))), np.where(mask, weights * token_gradient, 0)


def sequence_log_prob(logits: Array, labels: NDArray[np.int64], mask: Mask) -> float:
    """log p(y|x) of one sequence: the sum over its response tokens"""
    log_p = log_softmax(logits)
    return float(sum(log_p[t, labels[t]] for t in range(len(labels)) if mask[t]))


def dpo(chosen: float, rejected: float, reference_chosen: float, reference_rejected: float, beta: float) -> float:
    """-log sigmoid(beta d) = log(1 + exp(-beta d))"""
    return float(np.log1p(np.exp(-beta * ((chosen - reference_chosen) - (rejected - reference_rejected)))))
