"""What makes a decoding step cheap: keys and values written in place, and attention that does not repeat them.

transformers' own cache makes all keys and values anew for every token, and its attention repeats them for each query
head of a group. Where some dozens of sequences decode together on a CPU, both cost more than the matrix products.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, Cache, DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

DECODING_ATTENTION = "decoding"
ROOM = 256
"""Tokens of room that a cache makes at a time: once in so many steps it is copied, and no more than this lies idle."""


class RoomyTensor:
    """The keys or the values of one layer, in a buffer with room for more tokens."""

    def __init__(self, buffer: Float[Tensor, "batch heads room width"], length: int) -> None:
        self._buffer, self._rows, self._length = buffer, len(buffer), length

    @property
    def held(self) -> Float[Tensor, "batch heads length width"]:
        """A view of what was written."""
        return self._buffer[: self._rows, :, : self._length]

    def append(self, states: Float[Tensor, "batch heads new width"]) -> None:
        """Write the states of each sequence's next tokens."""
        end = self._length + states.shape[2]
        if end > self._buffer.shape[2]:
            self._buffer = join([self.held], copies=1, room=max(ROOM, states.shape[2]))
        self._buffer[: self._rows, :, self._length : end] = states
        self._length = end

    def select(self, rows: Int[Tensor, "kept"]) -> None:
        """Keep these sequences, in this order. Only those whose place changes are copied."""
        places = torch.arange(len(rows), device=rows.device)
        moved = places[rows != places]
        self.held[moved] = self.held[rows[moved]]
        self._rows = len(rows)


def join(
    parts: Sequence[Float[Tensor, "_ heads _ width"]], copies: int, room: int
) -> Float[Tensor, "batch heads room width"]:
    """Sequences of several lengths in one buffer: each so many times, side by side, with its last token at the same
    place as all others' last tokens, zeros before its first, and room after its last."""
    length, rows = max(part.shape[2] for part in parts), sum(map(len, parts))
    _, heads, _, width = parts[0].shape
    buffer = parts[0].new_empty(rows, copies, heads, length + room, width)
    for part, target in zip(parts, buffer.split([len(part) for part in parts]), strict=True):
        before = length - part.shape[2]
        target[:, :, :, :before] = 0
        target[:, :, :, before:length] = part.unsqueeze(1)
    return buffer.flatten(0, 1)


class RoomyLayer(DynamicLayer):
    """One layer of a transformers cache. All that was seen stays; a sliding window is the attention mask's business."""

    _roomy: tuple[RoomyTensor, RoomyTensor]

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            length = key_states.shape[2]
            self._roomy = RoomyTensor(key_states, length), RoomyTensor(value_states, length)
        else:
            for tensor, states in zip(self._roomy, (key_states, value_states), strict=True):
                tensor.append(states)
        return self._show()

    def fill(self, keys: Tensor, values: Tensor, length: int) -> None:
        """Take buffers of which the first `length` tokens are written."""
        self.lazy_initialization(keys, values)
        self._roomy = RoomyTensor(keys, length), RoomyTensor(values, length)
        self._show()

    def batch_select_indices(self, indices: Tensor) -> None:
        for tensor in self._roomy:
            tensor.select(indices)
        self._show()

    def _show(self) -> tuple[Tensor, Tensor]:
        """Where transformers looks for the keys, the values and their number."""
        self.keys, self.values = (tensor.held for tensor in self._roomy)
        return self.keys, self.values


def roomy_cache(config: Any) -> Cache:
    """An empty cache for a model of this configuration.

    Raises:
        ValueError: the model has layers that keep something else than keys and values.
    """
    layers = DynamicCache(config=config).layers
    others = {type(layer).__name__ for layer in layers} - {DynamicLayer.__name__, DynamicSlidingWindowLayer.__name__}
    if others:
        raise ValueError(f"the transformers engine cannot decode a {config.model_type} ({', '.join(others)}): use vLLM")
    return Cache(layers=[RoomyLayer() for _ in layers])


def has_window(config: Any) -> bool:
    """Whether a layer sees a number of places back, and not all of them: padding between tokens would count as seen."""
    return any(DynamicCache(config=config).is_sliding)


def join_caches(caches: Sequence[Cache], copies: int) -> Cache:
    """The sequences of all these caches in a new one, as `join` puts them."""
    layers = []
    for parts in zip(*(cache.layers for cache in caches), strict=True):
        layer = RoomyLayer()
        keys, values = (join([getattr(part, name) for part in parts], copies, ROOM) for name in ("keys", "values"))
        layer.fill(keys, values, length=keys.shape[2] - ROOM)
        layers.append(layer)
    return Cache(layers=layers)


def use_decoding_attention(model: Any) -> None:
    """Let a model decode with `decoding_attention` where its own is torch's, by way of transformers' interface."""
    if model._supports_attention_backend and model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(DECODING_ATTENTION)


def decoding_attention(
    module: Any,
    query: Float[Tensor, "batch heads new width"],
    key: Float[Tensor, "batch key_heads total width"],
    value: Float[Tensor, "batch key_heads total value_width"],
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Float[Tensor, "batch new heads value_width"], None]:
    """A transformers attention implementation.

    All heads of a group see the same keys, and a single query sees them under one mask: so the queries of a group are
    the rows of one product. Longer queries, those of prompts, go to transformers' own implementation.
    """
    if query.shape[2] > 1 or options.get("position_bias") is not None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)
    grouped = query.reshape(len(query), key.shape[1], -1, query.shape[-1])
    attended = scaled_dot_product_attention(grouped, key, value, attn_mask=attention_mask, scale=scaling)
    return attended.flatten(1, 2).unsqueeze(1), None


AttentionInterface.register(DECODING_ATTENTION, decoding_attention)
AttentionMaskInterface.register(DECODING_ATTENTION, sdpa_mask)
