"""What the parts of a training run take of a GPU's memory, by arithmetic on the model's config.

    weights, AdamW's moments, gradients     float32; a part of each where ranks share them (FSDP2)
    put together                            what FSDP2 gathers to compute: a layer at a time, and what belongs to none
    activations                             between the forward and the backward pass; they grow with the row's tokens
    the output head                         a chunk of logits, and the gradient of the whole head
    the rollout engine                      weights, key-value cache, its own work

The activations are those of a Qwen2, Llama or OLMo-2 layer under packed attention (training/packing.py), segment after
segment; the kernels that take all segments at once keep less, a fifth at most. Tests compare the sums with what torch
allocates on a CPU. `memory_phases.py` adds the parts up, phase by phase.
"""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from cs336_alignment.numerics.log_probs import BLOCK_BYTES, LOGITS_CHUNK_BYTES
from cs336_alignment.training.packing import Layout

GIB = 2**30
FLOAT32 = 4
KEYS_PER_TOKEN = 3
"""Keys that segments see which follow others, per token of the row: each has those before it again. 3 for a stem of 120
tokens, 80 more a prompt, and responses of 100, alone or in groups of 8; less for longer responses."""
ENGINE_LIBRARIES = GIB
"""Workspaces of CUDA's libraries and the graphs of an engine: an allowance."""
ENGINE_LOGITS = 6
"""Float32 arrays of (sequences, vocabulary) that vLLM holds at once while it samples: an allowance."""
NORMS_AFTER = ("olmo2", "olmo3")
"""Architectures whose layers normalise what attention and feed-forward give, and queries and keys, instead of what
attention and feed-forward take."""


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a decoder-only transformer.

    Attributes:
        parameters: all of them, a tied head once.
        layer_parameters: of one layer.
        hidden, intermediate, vocab, layers, heads, kv_heads, head_dim: as the config names them.
        max_positions: longest sequence.
        tied: whether the output head is the embedding.
        norms_after: see `NORMS_AFTER`.
    """

    parameters: int
    layer_parameters: int
    hidden: int
    intermediate: int
    vocab: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    max_positions: int
    tied: bool
    norms_after: bool

    @classmethod
    def from_config(cls, config: Any) -> "ModelShape":
        """From a transformers config, without weights: parameters are counted on torch's meta device."""
        with torch.device("meta"):
            model: Any = AutoModelForCausalLM.from_config(config)
        heads = config.num_attention_heads
        return cls(
            parameters=model.num_parameters(),
            layer_parameters=sum(weight.numel() for weight in model.base_model.layers[0].parameters()),
            hidden=config.hidden_size,
            intermediate=config.intermediate_size,
            vocab=config.vocab_size,
            layers=config.num_hidden_layers,
            heads=heads,
            kv_heads=config.num_key_value_heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
            max_positions=config.max_position_embeddings,
            tied=config.tie_word_embeddings,
            norms_after=config.model_type in NORMS_AFTER,
        )

    @property
    def head_parameters(self) -> int:
        """Of the output head, and so of the largest weight."""
        return self.vocab * self.hidden

    @property
    def root_parameters(self) -> int:
        """Those that belong to no layer: embedding, head, last norm."""
        return self.parameters - self.layers * self.layer_parameters

    @property
    def stored_parameters(self) -> int:
        """Of the state dict, which has a tied head twice."""
        return self.parameters + (self.head_parameters if self.tied else 0)

    def key_value_bytes(self, positions: int, element_bytes: int) -> int:
        """A key-value cache: a key and a value a layer, for so many positions of all sequences together."""
        return 2 * self.layers * self.kv_heads * self.head_dim * positions * element_bytes


@dataclass(frozen=True)
class Arrangement:
    """How a policy lies on its GPUs, and computes.

    Attributes:
        compute_bytes: 2 for bfloat16, 4 for float32. Bfloat16 is autocast's where a GPU has the whole policy, and that
            of the gathered parameters where it has a shard.
        shards: GPUs that share weights, gradients and moments; 1 where each has all of them.
        checkpointing: of activations.
        keep_reference: a copy of the initial policy stays, shared out like the policy.
    """

    compute_bytes: int
    shards: int = 1
    checkpointing: bool = False
    keep_reference: bool = False

    @property
    def sharded(self) -> bool:
        return self.shards > 1

    @property
    def autocast(self) -> bool:
        """Copies of float32 weights, and of every linear layer's input, in bfloat16."""
        return self.compute_bytes < FLOAT32 and not self.sharded

    @property
    def stream_bytes(self) -> int:
        """Of a number in the residual stream, which autocast leaves in float32."""
        return FLOAT32 if self.autocast else self.compute_bytes


@dataclass(frozen=True)
class Row:
    """What the activations of a packed row depend on.

    Attributes:
        tokens: its length.
        keys: that segments see which follow others, once for each of them.
        pairs: (query, key) of these, masked ones included.
    """

    tokens: int
    keys: int
    pairs: int

    @classmethod
    def of_layout(cls, layout: Layout) -> "Row":
        seen = [
            (segment.length, layout.followed(segment) + segment.length)
            for segment in layout.segments
            if segment.length and layout.followed(segment)
        ]
        return cls(sum(layout.lengths), sum(keys for _, keys in seen), sum(length * keys for length, keys in seen))

    @classmethod
    def filled(cls, tokens: int, longest: int) -> "Row":
        """A row of which no more is known than its length and that of the longest prompt with its response."""
        return cls(tokens, round(KEYS_PER_TOKEN * tokens), longest * tokens)


def layer_activation_bytes(shape: ModelShape, how: Arrangement, row: Row) -> int:
    """What one layer keeps for its backward pass.

    A norm computes in float32. Autocast casts its output anew for each linear layer that takes it: five times a layer,
    where others share it, twice.
    """
    compute, attention = how.compute_bytes, shape.heads * shape.head_dim
    norms, widths = 2, 2 * shape.hidden
    if shape.norms_after:
        norms, widths = 4, widths + attention + shape.kv_heads * shape.head_dim  # those of queries and keys too
    scaled = FLOAT32 if shape.norms_after else how.stream_bytes  # OLMo's norms multiply by their weight in float32
    a_token = (
        widths * FLOAT32  # the norms' inputs
        + widths * scaled  # these, divided by their root mean square
        + norms * FLOAT32  # the root mean squares
        + (5 if how.autocast else 2) * shape.hidden * compute  # what the linear layers take: q, k, v; gate, up
        + attention * compute  # queries
        + 2 * attention * compute  # keys and values, repeated for the queries' heads
        + shape.heads * FLOAT32  # log-sum-exp of the scores
        + attention * compute  # what was attended to, segment by segment
        + attention * compute  # the same laid end to end: the output projection's input
        + 4 * shape.intermediate * compute  # gate, silu(gate), up, and silu(gate) * up
    )
    return (
        row.tokens * a_token
        + row.keys * 2 * attention * compute  # keys and values of each prompt again, once a response
        + row.pairs * compute  # the responses' masks, as numbers to add to the scores
    )


def saved_activation_bytes(shape: ModelShape, how: Arrangement, row: Row) -> int:
    """What all layers keep between the forward and the backward pass. A checkpointed layer keeps its input alone."""
    stream = shape.hidden * how.stream_bytes
    layer = row.tokens * stream if how.checkpointing else layer_activation_bytes(shape, how, row)
    around_the_layers = (
        shape.hidden * FLOAT32  # the last norm's input
        + (shape.hidden * FLOAT32 if shape.norms_after else stream)  # that divided by its root mean square
        + FLOAT32  # the root mean square
        + 2 * shape.head_dim * how.stream_bytes  # cosines and sines of the positions
        + 3 * 8  # token ids, labels, the places that predict them
    )
    return shape.layers * layer + row.tokens * around_the_layers


def layer_at_work_bytes(shape: ModelShape, how: Arrangement, row: Row) -> int:
    """What the backward pass of one layer adds: a few gradients, for what the layer saved is freed as they come, and
    all that the layer saves where it was not kept but computed again."""
    gradients = row.tokens * (2 * shape.hidden * FLOAT32 + 2 * shape.intermediate * how.compute_bytes)
    return gradients + (layer_activation_bytes(shape, how, row) if how.checkpointing else 0)


def hidden_bytes(shape: ModelShape, how: Arrangement) -> int:
    """A token's hidden state, that state again where it predicts one of a response, and its gradient."""
    return 3 * shape.hidden * how.stream_bytes


def head_buffer_bytes(shape: ModelShape, how: Arrangement, tokens: int) -> int:
    """What the chunked output head holds while it scores so many tokens (numerics/log_probs.py)."""
    rows = min(tokens, LOGITS_CHUNK_BYTES["cuda"] // (shape.vocab * FLOAT32))
    products = rows * shape.vocab * how.compute_bytes  # the chunk's one buffer
    block = min(BLOCK_BYTES["cuda"], rows * shape.vocab * FLOAT32)
    copy = shape.head_parameters * how.compute_bytes if how.autocast else 0
    return products + 3 * block + copy  # a block's logits, masked; shifted; their exponentials


def head_gradient_bytes(shape: ModelShape, how: Arrangement) -> int:
    """A microbatch's gradient of the head while it adds up, in float32, and the part of one chunk in bfloat16."""
    part = shape.head_parameters * how.compute_bytes if how.compute_bytes < FLOAT32 else 0
    return shape.head_parameters * FLOAT32 + part


def waiting_head_gradient_bytes(shape: ModelShape, how: Arrangement) -> int:
    """Of it what stays until the backward pass reaches the embedding: all of it for a tied head, whose gradient has two
    parts, and for shards, which meet a module at a time."""
    return shape.head_parameters * how.compute_bytes if how.sharded else FLOAT32 * shape.head_parameters * shape.tied


def embedding_gradient_bytes(shape: ModelShape, how: Arrangement) -> int:
    """The gradients at the end of the backward pass: the embedding's, with a tied head's and their sum; of shards those
    of all that belongs to no layer, the same in float32 to be added up over ranks, and this rank's part of the sum."""
    if how.sharded:
        return shape.root_parameters * (how.compute_bytes + FLOAT32) + FLOAT32 * shape.root_parameters // how.shards
    return FLOAT32 * shape.head_parameters * (3 if shape.tied else 1)


def weight_copy_bytes(shape: ModelShape, how: Arrangement, layers: int) -> int:
    """The copies in bfloat16 that autocast makes, and keeps as long as the pass, of so many layers' weights."""
    return layers * shape.layer_parameters * how.compute_bytes if how.autocast else 0


def gathered_bytes(shape: ModelShape, how: Arrangement, layers: int) -> int:
    """What FSDP2 puts together: all that belongs to no layer, and so many layers' parameters or buffers."""
    return (shape.root_parameters + layers * shape.layer_parameters) * how.compute_bytes if how.sharded else 0


@dataclass(frozen=True)
class Engine:
    """A rollout engine's bytes on each GPU.

    Attributes:
        weights: its own.
        awake: all that it takes: weights, key-value cache and work.
        least: what it has to have to start, with room for one sequence.
        copies: what it makes of a new weight before it puts it in its place.
        element_bytes: of its numbers.
    """

    weights: int
    awake: int
    least: int
    copies: int
    element_bytes: int


NO_ENGINE = Engine(0, 0, 0, 0, FLOAT32)
"""Where the trainer alone is asked about."""


def engine_work_bytes(shape: ModelShape, batched_tokens: int, sequences: int, element_bytes: int) -> int:
    """What vLLM sets aside of its share to compute: a prefill's activations, logits, and what its libraries and graphs
    take, which it counts too. An allowance."""
    a_token = (3 * shape.intermediate + 4 * shape.hidden) * element_bytes
    return ENGINE_LIBRARIES + batched_tokens * a_token + ENGINE_LOGITS * sequences * shape.vocab * FLOAT32


def engine_cache_bytes(
    shape: ModelShape, sequences: int, positions: int, element_bytes: int, tensor_parallel: int = 1
) -> int:
    """The part of the key-value cache of so many sequences on each GPU of an engine; heads that are fewer than the GPUs
    lie on several."""
    cached = shape.key_value_bytes(sequences * min(positions, shape.max_positions), element_bytes)
    return cached // min(tensor_parallel, shape.kv_heads)
