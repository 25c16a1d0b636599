"""Attention kernels that take all segments of a packed row in one call, on GPUs: flash-attn's, or else torch's own.

    query         (queries, heads, width)     segment after segment
    key, value    (keys, kv_heads, width)     the keys that each segment sees, segment after segment

    A segment of n queries and m >= n keys:  query i sees keys 0 ... m - n + i,  so that its last query sees them all

flash-attn 2 and torch's `varlen_attn` are the same kernel (Dao 2023) with forward and backward pass. flash-attn is used
where it is installed; torch's needs no build. Both have been run here through a reference only, never on a GPU.
"""

import inspect
from collections.abc import Callable
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

OLDEST_CAPABILITY = (8, 0)
"""The oldest GPUs that the kernels run on: NVIDIA Ampere, such as the A100."""
LARGEST_WIDTH = 256
"""Of a head; a width must also be a multiple of 8."""


class Bounds(NamedTuple):
    """Where the segments lie, in the order in which the kernels take it.

    Attributes:
        queries, keys: int32 (segments + 1,), where each segment begins, and at last where the last one ends.
        longest_query, longest_key: the longest segment of each.
    """

    queries: Int[Tensor, "bounds"]
    keys: Int[Tensor, "bounds"]
    longest_query: int
    longest_key: int


VarlenKernel = Callable[[Tensor, Tensor, Tensor, Bounds, float | None], Tensor]
"""(query, key, value, bounds, factor of the scores) -> (queries, heads, width); None is the factor width ** -0.5."""


def choose_kernel(device: torch.device, dtype: torch.dtype, width: int) -> VarlenKernel | None:
    """The kernel for such arrays; None where they need the segment path: on a CPU, in float32, for odd head widths."""
    if dtype not in (torch.bfloat16, torch.float16) or width % 8 or width > LARGEST_WIDTH:
        return None
    return _kernel_of(device)


@cache
def _kernel_of(device: torch.device) -> VarlenKernel | None:
    """Looked up once a device, not once a layer."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < OLDEST_CAPABILITY:
        return None
    return _installed_kernel()


def _installed_kernel() -> VarlenKernel:
    try:
        version("flash-attn")  # not the module's name, which flash-attn-4 has too
    except PackageNotFoundError:
        from torch.nn.attention.varlen import varlen_attn

        return torch_kernel(varlen_attn)
    try:
        from flash_attn import flash_attn_varlen_func  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError(
            "flash-attn is installed and cannot be imported; it may be built for another torch. Without it torch's own "
            f"kernel serves: uv pip uninstall flash-attn ({error})"
        ) from error
    return flash_attn_kernel(flash_attn_varlen_func)


def flash_attn_kernel(flash_attn_varlen_func: Callable[..., Tensor]) -> VarlenKernel:
    """Call flash-attn 2 (2.1 or newer, which aligns the causal mask at a segment's end)."""

    def attend(query: Tensor, key: Tensor, value: Tensor, bounds: Bounds, scaling: float | None) -> Tensor:
        return flash_attn_varlen_func(query, key, value, *bounds, softmax_scale=scaling, causal=True)

    return attend


def torch_kernel(varlen_attn: Callable[..., Any]) -> VarlenKernel:
    """Call torch's `varlen_attn` by the arguments that it has: those of torch 2.13, or the fewer of torch 2.10.

    torch 2.10 takes `is_causal` instead of a window, always scales the scores by width ** -0.5, and wants as many key
    heads as query heads: queries are scaled beforehand and keys repeated.
    """
    parameters = inspect.signature(varlen_attn).parameters
    causal: dict[str, Any] = {"window_size": (-1, 0)} if "window_size" in parameters else {"is_causal": True}
    groups = "enable_gqa" in parameters
    scales = "scale" in parameters

    def attend(
        query: Float[Tensor, "queries heads width"],
        key: Float[Tensor, "keys kv_heads width"],
        value: Float[Tensor, "keys kv_heads width"],
        bounds: Bounds,
        scaling: float | None,
    ) -> Float[Tensor, "queries heads width"]:
        options = dict(causal)
        if groups:
            options["enable_gqa"] = True
        else:
            repeats = query.shape[1] // key.shape[1]
            key, value = (tensor.repeat_interleave(repeats, dim=1) for tensor in (key, value))
        if scales:
            options["scale"] = scaling
        elif scaling is not None and scaling != (usual := query.shape[2] ** -0.5):
            query = query * (scaling / usual)
        return varlen_attn(query, key, value, *bounds, **options)

    return attend
