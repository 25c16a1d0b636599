"""Checks that compute on every GPU, or on the CPU: collective sums, attention, the output head.

What is computed has an exact or a float64 answer. Each GPU does it, and the worst counts.
"""

from collections.abc import Callable
from importlib.util import find_spec
from time import perf_counter
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor
from transformers import AutoConfig

from cs336_alignment.node_check.outcome import CheckFailedError, Figures, Setting
from cs336_alignment.numerics.log_probs import chunked_token_loss
from cs336_alignment.ranks import Ranks
from cs336_alignment.training.packing import PackedBatch, TokenExample, pack, packed_attention
from cs336_alignment.training.varlen import choose_kernel

Attend = Callable[..., tuple[Tensor, None]]
"""The signature of `packed_attention`."""

REPEATS = 5
SLOW_BUS = 2e9
"""Bytes a second: sharded training of 1.5 B parameters would wait six seconds a microbatch."""
HEADS, KV_HEADS, HEAD_DIM = 12, 2, 128
"""Of Qwen2.5-1.5B's attention."""
HIDDEN, VOCAB, PADDING = 1536, 151_936, 271
"""Of its output head, the last rows of which belong to no token."""
VOCAB_ON_CPU = 16_384
"""In place of it, where no model is named: a minute of float64 shows no more."""
ERRORS = {torch.float32: 1e-4, torch.bfloat16: 3e-2}
"""Largest relative error, in the Euclidean norm. Rounding gives about 1e-6 and 5e-3; a fault gives 0.1 to 1."""


def without_peers(setting: Setting) -> str | None:
    """Why nothing is added up."""
    return "there is one GPU" if setting.ranks == 1 else None


def all_reduce(setting: Setting) -> Figures:
    """Ranks add up integers, which floats hold exactly, and the time tells the bandwidth of what links them."""
    ranks = Ranks()
    numbers = torch.arange(2**26 if setting.gpus else 2**22, device=ranks.device).remainder(251).float()
    sums = numbers + ranks.index
    dist.all_reduce(sums)
    expected = ranks.count * numbers + ranks.count * (ranks.count - 1) // 2
    wrong = int((sums != expected).sum())
    seconds = max(ranks.gather([_seconds(lambda: dist.all_reduce(sums), ranks.device)]))
    # Each number crosses a link 2 (n - 1) / n times in a ring of n.
    bandwidth = 2 * (ranks.count - 1) / ranks.count * numbers.nbytes / seconds
    figures = {
        "ranks": ranks.count,
        "backend": "nccl" if setting.gpus else "gloo",
        "mib": numbers.nbytes // 2**20,
        "bus_gb_a_second": round(bandwidth / 1e9, 2),
    }
    problem = ranks.any_of(f"rank {ranks.index} has {wrong:,} wrong sums" if wrong else None)
    if problem:
        raise CheckFailedError(problem, figures=figures)
    if setting.gpus and bandwidth < SLOW_BUS:
        problem = f"the GPUs exchange {bandwidth / 1e9:.1f} GB/s, as over sockets: NVLink has 100, PCIe 10"
        raise CheckFailedError(problem, figures=figures)
    return figures


def attention(setting: Setting) -> Figures:
    """The kernel that training takes in bfloat16 against the float32 path, and that against a dense mask in float64."""
    ranks = Ranks()
    figures: Figures = {"float32_error": compare_with_dense(packed_attention, ranks.device)}
    if setting.gpus:
        if choose_kernel(ranks.device, torch.bfloat16, HEAD_DIM) is None:
            raise CheckFailedError("no attention kernel runs on this GPU: training would be many times slower")
        figures["kernel"] = "flash-attn's" if find_spec("flash_attn") else "torch's varlen_attn"
        figures["bfloat16_error"] = compare_with_float32(packed_attention, ranks.device)
    else:
        figures["kernel"] = "not run: there is no GPU"
    bounds = {"float32_error": ERRORS[torch.float32], "bfloat16_error": ERRORS[torch.bfloat16]}
    return _within(ranks, figures, bounds)


def compare_with_dense(attend: Attend, device: torch.device) -> float:
    """The largest relative error of float32 attention over a packed row, output and gradients, against attention over
    every pair of tokens under a mask in float64."""
    batch, tensors = _attention_inputs(device)
    mask = _sees(batch).to(device)

    def dense(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        key, value = (tensor.repeat_interleave(HEADS // KV_HEADS, dim=1) for tensor in (key, value))
        scores = (query @ key.transpose(2, 3) * HEAD_DIM**-0.5).masked_fill(~mask, float("-inf"))
        return (scores.softmax(dim=3) @ value).transpose(1, 2)

    expected = _with_gradients(dense, [tensor.double() for tensor in tensors])
    return _largest_error(_with_gradients(_packed(attend, batch), [tensor.float() for tensor in tensors]), expected)


def compare_with_float32(attend: Attend, device: torch.device) -> float:
    """The same of bfloat16 attention against float32 on the same numbers."""
    batch, tensors = _attention_inputs(device)
    expected = _with_gradients(_packed(packed_attention, batch), [tensor.float() for tensor in tensors])
    return _largest_error(_with_gradients(_packed(attend, batch), tensors), expected)


def _attention_inputs(device: torch.device) -> tuple[PackedBatch, list[Tensor]]:
    """Four prompts with a common beginning, eight responses each; query, key and value in bfloat16."""
    generator = torch.Generator().manual_seed(0)
    stem = tuple(range(100))
    lengths = torch.randint(1, 40, (4, 9), generator=generator).tolist()
    examples = [
        TokenExample((*stem, *range(200 + 50 * prompt, 200 + 50 * prompt + own)), (7,) * length)
        for prompt, (own, *responses) in enumerate(lengths)
        for length in responses
    ]
    batch = pack(examples, device)
    shapes = [(1, heads, batch.row_tokens, HEAD_DIM) for heads in (HEADS, KV_HEADS, KV_HEADS)]
    return batch, [torch.randn(shape, generator=generator).to(device, torch.bfloat16) for shape in shapes]


def _sees(batch: PackedBatch) -> Tensor:
    """bool (row, row): whether a token sees another, from what a segment follows."""
    segments = batch.layout.segments
    number = torch.repeat_interleave(torch.arange(len(segments)), torch.tensor(batch.layout.lengths))
    follows = torch.zeros(len(segments), len(segments), dtype=torch.bool)
    for mine, segment in enumerate(segments):
        follows[mine, list(segment.follows)] = True
    earlier = torch.ones(len(number), len(number), dtype=torch.bool).tril()
    return follows[number][:, number] | ((number.unsqueeze(1) == number) & earlier)


def _packed(attend: Attend, batch: PackedBatch) -> Callable[..., Tensor]:
    module = torch.nn.Identity()
    return lambda *tensors: attend(module, *tensors, None, scaling=HEAD_DIM**-0.5, layout=batch.layout)[0]


def _with_gradients(attend: Callable[..., Tensor], tensors: list[Tensor]) -> list[Tensor]:
    """What attention gives, and the gradients of a weighted sum of it in each of its inputs."""
    tensors = [tensor.detach().requires_grad_() for tensor in tensors]
    attended = attend(*tensors)
    weights = torch.randn(attended.shape, generator=torch.Generator().manual_seed(1)).bfloat16().to(attended)
    return [attended.detach(), *torch.autograd.grad((attended * weights).sum(), tensors)]


def output_head(setting: Setting) -> Figures:
    """Log-probs, entropy and gradients of the chunked output head at the model's shape, against plain float64."""
    ranks = Ranks()
    hidden_size, vocab = HIDDEN, VOCAB if setting.gpus else VOCAB_ON_CPU
    if setting.model is not None:
        config: Any = AutoConfig.from_pretrained(setting.model)
        hidden_size, vocab = config.hidden_size, config.vocab_size
    tokens, dtype = (1024, torch.bfloat16) if setting.gpus else (32, torch.float32)
    errors = compare_head(ranks.device, tokens, hidden_size, vocab, dtype)
    figures = {"tokens": tokens, "hidden": hidden_size, "vocab": vocab, "dtype": str(dtype).removeprefix("torch.")}
    return _within(ranks, figures | errors, dict.fromkeys(errors, ERRORS[dtype]))


def compare_head(device: torch.device, tokens: int, hidden_size: int, vocab: int, dtype: torch.dtype) -> Figures:
    """Relative errors of the head with matrix products in `dtype`, as policies in training have it."""
    torch.manual_seed(0)
    hidden = torch.randn(tokens, hidden_size, device=device).bfloat16().float().requires_grad_()
    # Logits of several units, as a trained model's: were they near 0, every probability would be 1 / vocab.
    scale = 3 * hidden_size**-0.5
    head = (scale * torch.randn(vocab, hidden_size, device=device)).bfloat16().float().requires_grad_()
    known = vocab - PADDING if vocab > 2 * PADDING else vocab
    labels = torch.randint(known, (tokens,), device=device)
    weights = torch.rand(tokens, device=device) - 0.5
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        loss, log_probs, entropy = chunked_token_loss(
            hidden, head, labels, lambda scores, at: weights[at] * scores, vocab_size=known
        )
    by_hidden, by_head = torch.autograd.grad(loss, (hidden, head))
    return _head_errors(
        hidden.detach(), head.detach(), labels, weights, known, [log_probs, entropy, by_hidden, by_head]
    )


def _head_errors(
    hidden: Float[Tensor, "tokens hidden"],
    head: Float[Tensor, "vocab hidden"],
    labels: Int[Tensor, "tokens"],
    weights: Float[Tensor, "tokens"],
    known: int,
    found: list[Tensor],
) -> Figures:
    """The head's equations in float64, some rows of the head at a time, so that no copy of it is ever whole.

    L = sum_t w_t log p_t;  dL/dz_t = w_t (onehot(label_t) - p_t);  dL/dh = dL/dz W;  dL/dW = (dL/dz)^T h
    """
    log_probs, entropy, by_hidden, by_head = found
    rows, hidden = 8192, hidden.double()
    logits = torch.cat([hidden @ part.double().T for part in head.split(rows)], dim=1)
    logits[:, known:] = float("-inf")
    log_p = logits.log_softmax(dim=1)
    p = log_p.exp()
    by_logits = -weights.double().unsqueeze(1) * p
    by_logits.scatter_add_(1, labels.unsqueeze(1), weights.double().unsqueeze(1))
    parts = list(zip(by_logits.split(rows, dim=1), head.split(rows), by_head.split(rows), strict=True))
    wrong = norm = 0.0
    for by, _, given in parts:
        expected = by.T @ hidden
        wrong += float(((given.double() - expected) ** 2).sum())
        norm += float((expected**2).sum())
    return {
        "log_prob_error": _error(log_probs, log_p.gather(1, labels.unsqueeze(1)).squeeze(1)),
        "entropy_error": _error(entropy, -(p * log_p.masked_fill(p == 0, 0.0)).sum(dim=1)),
        "hidden_gradient_error": _error(by_hidden, sum(by @ part.double() for by, part, _ in parts)),
        "head_gradient_error": (wrong / norm) ** 0.5,
    }


def _within(ranks: Ranks, figures: Figures, bounds: dict[str, float]) -> Figures:
    """The worst rank's figures.

    Raises:
        CheckFailedError: an error is beyond its bound, or is not a number, on any rank.
    """
    of_ranks = ranks.gather([figures])
    worst = dict(figures)
    for name in bounds.keys() & figures.keys():
        values = [each[name] for each in of_ranks]
        worst[name] = next((value for value in values if value != value), max(values))
    beyond = [f"{name} {worst[name]:.2g}, at most {bound:g}" for name, bound in bounds.items() if name in worst]
    if any(not worst[name] <= bound for name, bound in bounds.items() if name in worst):
        raise CheckFailedError(f"wrong numbers: {'; '.join(beyond)}", figures=worst)
    return worst


def _largest_error(found: list[Tensor], expected: list[Tensor]) -> float:
    errors = [_error(mine, theirs) for mine, theirs in zip(found, expected, strict=True)]
    return next((error for error in errors if error != error), max(errors))


def _error(found: Tensor, expected: Any) -> float:
    """In the Euclidean norm, relative to what was expected."""
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """Of one call, the mean of several after the first."""
    work()
    _finish(device)
    began = perf_counter()
    for _ in range(REPEATS):
        work()
    _finish(device)
    return (perf_counter() - began) / REPEATS


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
