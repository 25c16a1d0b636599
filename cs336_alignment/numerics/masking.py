"""Sums and means over the unmasked elements of a tensor (handout sections 4 and 7).

Both select with `where` rather than multiply: a masked position may hold inf or NaN, and `inf * 0` is NaN.
"""

from jaxtyping import Float, Shaped
from torch import Tensor


def masked_normalize(
    tensor: Float[Tensor, "*shape"],
    mask: Shaped[Tensor, "*shape"],
    normalize_constant: float,
    dim: int | None = None,
) -> Float[Tensor, "..."]:
    """Sum over the unmasked elements, divided by a constant.

        out = sum_i mask_i * tensor_i / normalize_constant

    Args:
        tensor: the values, any shape.
        mask: bool or 0/1, of the same shape; true marks an element that counts.
        normalize_constant: the divisor, the same for every slice.
        dim: the dimension to sum over; None sums over all.

    Returns:
        `tensor`'s shape without `dim`, or a scalar. A slice without an unmasked element gives 0.

    Source: handout, problem masked_normalize.
    """
    return _masked_sum(tensor, mask, dim) / normalize_constant


def masked_mean(
    tensor: Float[Tensor, "*shape"],
    mask: Shaped[Tensor, "*shape"],
    dim: int | None = None,
) -> Float[Tensor, "..."]:
    """Mean over the unmasked elements.

        out = sum_i mask_i * tensor_i / sum_i mask_i

    Args:
        tensor: the values, any shape.
        mask: bool or 0/1, of the same shape; true marks an element that counts.
        dim: the dimension to average over; None averages over all.

    Returns:
        `tensor`'s shape without `dim`, or a scalar. A slice without an unmasked element gives NaN, as 0/0 is; its
        gradient is zero or NaN, so callers that can meet one guard against it.

    Source: handout, problem masked_mean.
    """
    return _masked_sum(tensor, mask, dim) / mask.bool().sum(dim)


def _masked_sum(tensor: Tensor, mask: Tensor, dim: int | None) -> Tensor:
    return tensor.where(mask.bool(), 0.0).sum(dim)
