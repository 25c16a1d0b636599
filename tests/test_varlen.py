"""Kernels that take a packed row in one call: what they are given means what the segment path computes.

None runs on a CPU. A reference stands in for the kernel; torch's own is called on torch's meta device, without numbers.
"""

import inspect
import sys
from itertools import pairwise
from types import ModuleType

import pytest
import torch
from torch.nn.attention.varlen import varlen_attn
from torch.utils._python_dispatch import TorchDispatchMode

from cs336_alignment.training import packing, varlen
from cs336_alignment.training.packing import TokenExample, pack, packed_attention
from cs336_alignment.training.policy import Policy
from cs336_alignment.training.varlen import Bounds, choose_kernel, flash_attn_kernel, torch_kernel
from tests.common import grad_of
from tests.fakes import FakeLM, FakeTokenizer

EXAMPLES = [
    TokenExample((1, 2, 3, 4), (6, 7, 8, 9)),
    TokenExample((1, 2, 5), (10,)),
    TokenExample((1, 2, 3, 4), (11, 12)),
    TokenExample((1, 2, 5), (13, 14, 15)),
]


def attend(q, k, v, cu_q, cu_k, max_q, max_k, scale):
    """Causal attention of each segment, from the equation; in a segment of n queries and m keys, query i sees key j
    where j - (m - n) <= i."""
    assert cu_q.dtype == cu_k.dtype == torch.int32
    assert k.shape == v.shape
    attended = []
    for (q0, q1), (k0, k1) in zip(pairwise(cu_q.tolist()), pairwise(cu_k.tolist()), strict=True):
        assert 0 < q1 - q0 <= max_q
        assert q1 - q0 <= k1 - k0 <= max_k
        groups = q.shape[1] // k.shape[1]
        keys, values = (tensor[k0:k1].repeat_interleave(groups, dim=1) for tensor in (k, v))
        scores = scale * torch.einsum("qhw,khw->hqk", q[q0:q1], keys)
        ahead = torch.arange(k1 - k0) - (k1 - k0 - (q1 - q0)) > torch.arange(q1 - q0).unsqueeze(1)
        weights = scores.masked_fill(ahead, float("-inf")).softmax(dim=2)
        attended.append(torch.einsum("hqk,khw->qhw", weights, values))
    assert (max_q, max_k) == (cu_q.diff().max(), cu_k.diff().max())
    return torch.cat(attended)


def like_torch_2_13(
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale=None, window_size=(-1, -1), enable_gqa=False
):
    assert window_size == (-1, 0), "not causal"
    assert enable_gqa or query.shape[1] == key.shape[1]
    scale = query.shape[2] ** -0.5 if scale is None else scale
    return attend(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, scale)


def like_torch_2_10(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False):
    assert is_causal
    assert query.shape[1] == key.shape[1]
    return attend(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, query.shape[2] ** -0.5)


def like_flash_attn(q, k, v, cu_q, cu_k, max_q, max_k, softmax_scale=None, causal=False):
    assert causal
    return attend(q, k, v, cu_q, cu_k, max_q, max_k, q.shape[2] ** -0.5 if softmax_scale is None else softmax_scale)


KERNELS = {
    "torch 2.13": torch_kernel(like_torch_2_13),
    "torch 2.10": torch_kernel(like_torch_2_10),
    "flash-attn": flash_attn_kernel(like_flash_attn),
}


@pytest.fixture(params=KERNELS)
def kernel(request):
    return KERNELS[request.param]


@pytest.mark.parametrize("scaling", [None, 0.3, 6**-0.5])
def test_one_call_is_the_segment_path_forward_and_backward(monkeypatch, kernel, scaling):
    batch = pack(EXAMPLES)
    torch.manual_seed(0)
    query, key, value = (
        torch.randn(1, heads, batch.row_tokens, 6, dtype=torch.float64, requires_grad=True) for heads in (4, 2, 2)
    )
    weights = torch.randn(1, batch.row_tokens, 4, 6, dtype=torch.float64)

    def run():
        attended, _ = packed_attention(
            torch.nn.Identity(), query, key, value, None, scaling=scaling, layout=batch.layout
        )
        return attended.detach(), *torch.autograd.grad((attended * weights).sum(), (query, key, value))

    expected = run()
    monkeypatch.setattr(packing, "choose_kernel", lambda *_: kernel)
    torch.testing.assert_close(run(), expected, rtol=1e-10, atol=1e-12)


def test_a_policy_trains_the_same_through_the_kernel(monkeypatch, kernel):
    through_segments, through_kernel = (Policy(FakeLM(), FakeTokenizer()) for _ in range(2))
    through_segments(pack(EXAMPLES), lambda log_probs, _: log_probs.exp()).loss.backward()
    monkeypatch.setattr(packing, "choose_kernel", lambda *_: kernel)
    through_kernel(pack(EXAMPLES), lambda log_probs, _: log_probs.exp()).loss.backward()
    for parameter, other in zip(through_kernel.parameters(), through_segments.parameters(), strict=True):
        torch.testing.assert_close(grad_of(parameter), grad_of(other), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("rotary_dtype", [torch.float32, torch.bfloat16], ids=["autocast", "bf16 parameters"])
def test_the_kernel_gets_the_compute_dtype_and_no_layout_no_kernel(monkeypatch, rotary_dtype):
    """Queries and keys are float32 behind the rotary embedding under autocast, and bfloat16 with bfloat16 weights."""
    seen = []

    def kernel(query, key, value, bounds, scaling):
        seen.append({query.dtype, key.dtype, value.dtype})
        return KERNELS["torch 2.13"](query, key, value, bounds, scaling)

    monkeypatch.setattr(packing, "choose_kernel", lambda *_: kernel)
    batch = pack(EXAMPLES)
    query, key = (torch.randn(1, heads, batch.row_tokens, 8, dtype=rotary_dtype) for heads in (4, 2))
    attended, _ = packed_attention(torch.nn.Identity(), query, key, key.bfloat16(), None, layout=batch.layout)
    assert attended.dtype == torch.bfloat16
    packed_attention(torch.nn.Identity(), query, key, key.bfloat16(), None)
    assert seen == [{torch.bfloat16}]


def test_gradients_of_all_that_see_a_prompt_add_up_before_they_are_rounded(monkeypatch):
    """512 responses see one token. What each sends back to it is rounded to bfloat16 by the kernel; summed in bfloat16,
    1 + 1 + ... would end at 256, where the next number is 258."""
    examples = [TokenExample((1,), (2 + place, 0)) for place in range(512)]
    batch = pack(examples)

    def sum_of_keys(query, key, value, bounds, scaling):
        return query + key.sum(dim=0, keepdim=True)

    monkeypatch.setattr(packing, "choose_kernel", lambda *_: sum_of_keys)
    row = torch.zeros(1, 1, batch.row_tokens, 8, dtype=torch.bfloat16, requires_grad=True)
    query = torch.zeros(1, 1, batch.row_tokens, 8, dtype=torch.bfloat16)
    attended, _ = packed_attention(torch.nn.Identity(), query, row, query, None, layout=batch.layout)
    attended[0, 0].sum().backward()
    assert grad_of(row)[0, 0, 0].tolist() == [512.0] * 8  # 513, with the prompt itself, in bfloat16
    assert grad_of(row)[0, 0, 1].tolist() == [1.0] * 8


@pytest.mark.parametrize("rotary_dtype", [torch.float32, torch.bfloat16])
def test_the_segment_path_casts_queries_and_keys_once(rotary_dtype):
    batch = pack([TokenExample((1, 2), (3 + place, 4)) for place in range(9)])
    casts = []

    class Counting(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            casts.extend([function] if function is torch.ops.aten._to_copy.default else [])
            return function(*args, **(kwargs or {}))

    query, key = (torch.randn(1, heads, batch.row_tokens, 8, dtype=rotary_dtype) for heads in (4, 2))
    value = key.bfloat16()
    batch.layout.masks(query.device)
    with torch.autocast("cpu", torch.bfloat16), Counting():
        attended, _ = packed_attention(torch.nn.Identity(), query, key, value, None, layout=batch.layout)
    assert attended.dtype == torch.bfloat16
    assert len(casts) == (2 if rotary_dtype == torch.float32 else 0)


KNOWN_SIGNATURES = {
    # torch 2.13
    "query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, return_aux=None, scale=None, window_size=(-1, -1), "
    "enable_gqa=False, seqused_k=None, block_table=None, num_splits=None",
    # torch 2.10, of the CUDA 12 stack
    "query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False, return_aux=None",
}


def test_torchs_kernel_has_a_signature_that_was_read():
    """A torch that changes it fails here; read the new one and its docstring before adding it above."""
    parameters = [
        parameter.name if parameter.default is parameter.empty else f"{parameter.name}={parameter.default}"
        for parameter in inspect.signature(varlen_attn).parameters.values()
    ]
    assert ", ".join(parameters) in KNOWN_SIGNATURES


def test_torchs_own_kernel_takes_what_it_is_given():
    """On the meta device: torch's argument checks, its operator's schema and its backward pass, without numbers."""
    order, bounds = pack(EXAMPLES).layout.varlen(torch.device("cpu"))
    options = {"device": "meta", "dtype": torch.bfloat16, "requires_grad": True}
    query = torch.randn(int(bounds.queries[-1]), 4, 16, **options)
    key, value = (torch.randn(len(order), 2, 16, **options) for _ in range(2))
    on_meta = Bounds(bounds.queries.to("meta"), bounds.keys.to("meta"), bounds.longest_query, bounds.longest_key)
    attended = torch_kernel(varlen_attn)(query, key, value, on_meta, 0.3)
    assert attended.shape == query.shape
    attended.sum().backward()
    assert [grad_of(tensor).shape for tensor in (query, key, value)] == [query.shape, key.shape, value.shape]


A100, T4 = (8, 0), (7, 5)


@pytest.fixture
def capability(monkeypatch):
    """A GPU of the given compute capability; the look-up starts anew."""
    varlen._kernel_of.cache_clear()
    yield lambda found: monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: found)
    varlen._kernel_of.cache_clear()


@pytest.mark.parametrize(
    ("device", "gpu", "dtype", "width", "found"),
    [
        ("cuda:0", A100, torch.bfloat16, 128, True),
        ("cuda:0", A100, torch.float16, 256, True),
        ("cuda:0", T4, torch.float16, 128, False),
        ("cuda:0", A100, torch.float32, 128, False),
        ("cuda:0", A100, torch.bfloat16, 20, False),
        ("cuda:0", A100, torch.bfloat16, 264, False),
        ("cpu", A100, torch.bfloat16, 128, False),
    ],
)
def test_who_gets_a_kernel(capability, device, gpu, dtype, width, found):
    capability(gpu)
    assert (choose_kernel(torch.device(device), dtype, width) is not None) == found


@pytest.fixture
def flash_attn(monkeypatch):
    """An installed flash-attn, and how often it was asked for."""
    asked = []
    monkeypatch.setattr(varlen, "version", lambda name: asked.append(name) or "2.8.3")
    module = ModuleType("flash_attn")
    module.flash_attn_varlen_func = like_flash_attn  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flash_attn", module)
    return asked


def test_flash_attn_is_used_where_it_is_installed_and_looked_up_once(capability, flash_attn):
    capability(A100)
    kernel = choose_kernel(torch.device("cuda:0"), torch.bfloat16, 128)
    assert kernel is not None
    assert kernel is choose_kernel(torch.device("cuda:0"), torch.bfloat16, 64)
    assert flash_attn == ["flash-attn"]
    one = torch.tensor([0, 1], dtype=torch.int32)
    value = torch.randn(1, 2, 8)
    torch.testing.assert_close(kernel(value, value, value, Bounds(one, one, 1, 1), 0.3), value)  # one key: its value


def test_a_flash_attn_that_does_not_fit_torch_is_an_error_that_says_so(monkeypatch, capability, flash_attn):
    capability(A100)
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    with pytest.raises(ImportError, match="uv pip uninstall flash-attn"):
        choose_kernel(torch.device("cuda:0"), torch.bfloat16, 128)
