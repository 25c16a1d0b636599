"""Sequences laid end to end in one row, what they begin with in common once: no padding, no prompt computed G times.

    row:      [stem] [prompt A] [response A1] [response A2] ... [prompt B] [response B1] ...
    follows:          stem       stem, A       stem, A           stem       stem, B

A group of G rollouts shares one prompt, most of its tokens; all prompts share the stem, their template's preamble. The
queries of a segment attend to the keys of the segments that it follows and to its own; positions count on. So every
hidden state is the one that the sequence would have alone, forward and backward: the gradients of G responses meet in
their prompt's keys. The last token of a response predicts nothing and is left out; the first is predicted by the
prompt's last token, which the group shares as well.

This is a transformers attention implementation: load a model with `attn_implementation=PACKED_ATTENTION` and pass
`layout=`. It needs causal full attention. Without `layout` it is plain causal attention over right-padded rows.

On a GPU in half precision all segments run in one call of a kernel (varlen.py). Everywhere else each is one call of
torch's scaled_dot_product_attention, which is also what the kernel is compared with.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from cs336_alignment.training.varlen import Bounds, VarlenKernel, choose_kernel

PACKED_ATTENTION = "packed"
_ALREADY_HEEDED = frozenset({"position_ids", "use_cache"})
"""Arguments that models pass on to their attention and that change nothing here: positions are in queries and keys."""


@dataclass(frozen=True)
class TokenExample:
    """One prompt and one response, as token ids: what was sampled, or a tokenised target. Never text again."""

    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]

    @property
    def length(self) -> int:
        return len(self.prompt_ids) + len(self.response_ids)


@dataclass(frozen=True)
class Segment:
    """Neighbouring tokens of a row; each sees those before it in the segment, and all of the segments that it follows.

    Attributes:
        length: how many tokens.
        follows: numbers of earlier segments, in the order of their positions.
    """

    length: int
    follows: tuple[int, ...] = ()


@dataclass(frozen=True)
class Layout:
    """Where the segments of a row lie: one after the other."""

    segments: tuple[Segment, ...]

    @property
    def lengths(self) -> list[int]:
        return [segment.length for segment in self.segments]

    def followed(self, segment: Segment) -> int:
        """How many tokens come before a segment's own: the position of its first."""
        return sum(self.segments[number].length for number in segment.follows)

    def masks(self, device: torch.device) -> dict[tuple[int, int], Tensor]:
        """(tokens before the segment, its own) -> bool (own, before + own), true where a key is seen."""
        if device not in self._masks:
            sizes = {(self.followed(segment), segment.length) for segment in self.segments if self.followed(segment)}
            self._masks[device] = {
                (before, own): torch.ones(own, before + own, dtype=torch.bool, device=device).tril(before)
                for before, own in sizes
            }
        return self._masks[device]

    @cached_property
    def _masks(self) -> dict[torch.device, dict[tuple[int, int], Tensor]]:
        return {}

    def varlen(self, device: torch.device) -> tuple[Int[Tensor, "keys"], Bounds]:
        """The same for a kernel that takes all segments at once (`varlen.py`): the places of the keys that segments
        see, segment after segment (int64), and the segments' bounds. Segments without a token are left out."""
        if device not in self._varlen:
            places = list(torch.arange(sum(self.lengths)).split(self.lengths))
            keys = [
                torch.cat([*(places[number] for number in segment.follows), own])
                for segment, own in zip(self.segments, places, strict=True)
                if segment.length
            ]
            counts = torch.tensor([[0, *filter(None, self.lengths)], [0, *map(len, keys)]])
            queries_at, keys_at = counts.cumsum(dim=1).to(device, torch.int32)
            longest_query, longest_key = counts.amax(dim=1).tolist()
            bounds = Bounds(queries_at, keys_at, longest_query, longest_key)
            self._varlen[device] = torch.cat(keys).to(device), bounds
        return self._varlen[device]

    @cached_property
    def _varlen(self) -> dict[torch.device, tuple[Tensor, Bounds]]:
        return {}


@dataclass(frozen=True)
class PackedBatch:
    """Examples as one row.

    Attributes:
        input_ids, position_ids: int64 (1, row).
        labels: int64 (tokens,), all response tokens, example after example in the order they were given.
        predictors: int64 (tokens,), the place in the row whose hidden state predicts each label.
        lengths: response tokens of each example.
        layout: where the segments lie.
    """

    input_ids: Int[Tensor, "1 row"]
    position_ids: Int[Tensor, "1 row"]
    labels: Int[Tensor, "tokens"]
    predictors: Int[Tensor, "tokens"]
    lengths: tuple[int, ...]
    layout: Layout

    @property
    def row_tokens(self) -> int:
        return self.input_ids.shape[1]


def pack(examples: Sequence[TokenExample], device: torch.device | str = "cpu") -> PackedBatch:
    """Lay examples end to end, those with the same prompt behind one copy of it, all behind one of the stem.

    Raises:
        ValueError: no examples, or one without prompt or response tokens.
    """
    if not examples or not all(example.prompt_ids and example.response_ids for example in examples):
        raise ValueError("packing needs examples, each with a prompt token and a response token at least")
    rows_of: dict[tuple[int, ...], list[int]] = {}
    for row, example in enumerate(examples):
        rows_of.setdefault(example.prompt_ids, []).append(row)
    stem = stem_length(rows_of)
    ids = list(examples[0].prompt_ids[:stem])
    positions = list(range(stem))
    predictors: list[list[int]] = [[] for _ in examples]
    segments = [Segment(stem)]
    for prompt_ids, rows in rows_of.items():
        ids += prompt_ids[stem:]
        positions += range(stem, len(prompt_ids))
        prompt_end = len(ids)
        prompt = len(segments)
        segments.append(Segment(len(prompt_ids) - stem, follows=(0,)))
        for row in rows:
            inputs = examples[row].response_ids[:-1]
            predictors[row] = [prompt_end - 1, *range(len(ids), len(ids) + len(inputs))]
            ids += inputs
            positions += range(len(prompt_ids), len(prompt_ids) + len(inputs))
            segments.append(Segment(len(inputs), follows=(0, prompt)))
    return PackedBatch(
        input_ids=torch.tensor([ids], device=device),
        position_ids=torch.tensor([positions], device=device),
        labels=torch.tensor([token for example in examples for token in example.response_ids], device=device),
        predictors=torch.tensor([place for places in predictors for place in places], device=device),
        lengths=tuple(len(example.response_ids) for example in examples),
        layout=Layout(tuple(segments)),
    )


def stem_length(prompts: Iterable[tuple[int, ...]]) -> int:
    """The tokens that all prompts begin with, but for the last one of any; 0 where there is one prompt only."""
    prompts = set(prompts)
    if len(prompts) < 2:
        return 0
    # What the first and the last in alphabetical order share, all between them share.
    first, last = min(prompts), max(prompts)
    limit = min(map(len, prompts)) - 1
    return next((place for place in range(limit) if first[place] != last[place]), limit)


def packed_tokens(examples: Sequence[TokenExample]) -> int:
    """The length of the row that `pack` makes: what a microbatch costs."""
    prompts = {example.prompt_ids for example in examples}
    shared = stem_length(prompts) * (len(prompts) - 1)
    return sum(map(len, prompts)) - shared + sum(len(example.response_ids) - 1 for example in examples)


def packed_attention(
    module: torch.nn.Module,
    query: Float[Tensor, "batch heads row width"],
    key: Float[Tensor, "batch kv_heads keys width"],
    value: Float[Tensor, "batch kv_heads keys width"],
    attention_mask: Tensor | None,
    scaling: float | None = None,
    layout: Layout | None = None,
    sliding_window: int | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    **others: Any,
) -> tuple[Float[Tensor, "batch row heads width"], None]:
    """The attention of a packed row; the signature is transformers'.

    Raises:
        ValueError: a sliding window, padding on the left, a key-value cache, dropout, attention to later tokens, or an
            argument that is not known here, such as a softcap or attention sinks.
    """
    if sliding_window is not None or attention_mask is not None or query.shape[2] != key.shape[2]:
        raise ValueError("packed attention is causal attention over whole rows: no sliding window, mask or cache")
    if not (getattr(module, "is_causal", True) if is_causal is None else is_causal):
        others["is_causal"] = False
    if dropout:
        others["dropout"] = dropout
    _refuse_what_changes_scores(module, others)
    # Under autocast the rotary embedding leaves queries and keys in float32; values tell the compute dtype. One cast of
    # each here, not one a segment.
    query = query.to(value.dtype)
    kernel = choose_kernel(value.device, value.dtype, value.shape[3])
    if layout is not None and kernel is not None:
        return _attend_at_once(kernel, query, key, value, layout, scaling), None
    key = key.to(value.dtype)
    repeats = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeats, dim=1), value.repeat_interleave(repeats, dim=1)
    if layout is None:
        attended = scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling)
    else:
        attended = _attend_by_segment(query, key, value, layout, scaling)
    return attended.transpose(1, 2), None


def _refuse_what_changes_scores(module: torch.nn.Module, others: dict[str, Any]) -> None:
    """An argument that was dropped in silence would train another model than the one that samples."""
    asked = sorted(name for name, value in others.items() if value is not None and name not in _ALREADY_HEEDED)
    if asked:
        raise ValueError(
            f"{type(module).__name__} asks for {', '.join(asked)}, which packed attention does not compute: it is "
            "plain causal attention, and a model with this config cannot be trained here"
        )


def _attend_by_segment(query: Tensor, key: Tensor, value: Tensor, layout: Layout, scaling: float | None) -> Tensor:
    """One call a segment, so that no work goes into pairs that may not see each other."""
    masks = layout.masks(query.device)
    queries, keys, values = (tensor.split(layout.lengths, dim=2) for tensor in (query, key, value))
    attended = []
    for number, segment in enumerate(layout.segments):
        before = layout.followed(segment)
        if segment.length and not before:
            piece = queries[number], keys[number], values[number]
            attended.append(scaled_dot_product_attention(*piece, is_causal=True, scale=scaling))
        elif segment.length:
            seen_keys, seen_values = (
                torch.cat([pieces[other] for other in (*segment.follows, number)], dim=2) for pieces in (keys, values)
            )
            mask = masks[before, segment.length]
            attended.append(
                scaled_dot_product_attention(queries[number], seen_keys, seen_values, attn_mask=mask, scale=scaling)
            )
    return torch.cat(attended, dim=2)


def _attend_at_once(
    kernel: VarlenKernel, query: Tensor, key: Tensor, value: Tensor, layout: Layout, scaling: float | None
) -> Tensor:
    """All segments in one call, keys and values laid out again for each segment that sees them.

    They are copied in float32, so that the gradients of all that see a prompt's key add up before they are rounded.
    """
    order, bounds = layout.varlen(query.device)
    query, key, value = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    precise = torch.promote_types(query.dtype, torch.float32)
    key, value = (tensor.to(precise)[order].to(query.dtype) for tensor in (key, value))
    return kernel(query, key, value, bounds, scaling).unsqueeze(0)


AttentionInterface.register(PACKED_ATTENTION, packed_attention)
