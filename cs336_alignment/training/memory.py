"""How much memory a run will take on each GPU, predicted from the model's config before anything is loaded.

    weights, AdamW's moments                       float32, as long as the run lives
    gradients                                      float32, from the first backward pass to the optimiser's step
    bfloat16 copies, activations, output head      while a microbatch runs; activations grow with its tokens
    the rollout engine                             while it is awake: it sleeps while the policy trains

So a run has phases, and needs what the largest takes. AdamW's moments appear with the first step: a run that fits
without them fails in the second. The activations are those of a Qwen2 or Llama layer under packed attention
(training/packing.py); tests compare them with what torch allocates on a CPU. The `reserve` is an allowance, not a
measurement.

    uv run python scripts/train_grpo.py ... --dry-run
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from cs336_alignment.numerics.log_probs import BLOCK_BYTES, LOGITS_CHUNK_BYTES
from cs336_alignment.training.packing import Layout

GIB = 2**30
FLOAT32 = 4
RESERVE = 0.05
"""Share of the GPU that is left to CUDA's context, libraries' workspaces, fragmentation, and a sleeping engine."""
KEYS_PER_TOKEN = 3
"""Keys that segments see which follow others, per token of the row: each has those before it again. 3 for a stem of 120
tokens, 80 more a prompt, and responses of 100, alone or in groups of 8; less for longer responses."""
BUDGET_STEP = 64
"""The largest token budget is rounded down to a multiple of this."""
SMALLER = "shard them over more GPUs (FSDP2), or take a smaller model"


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a decoder-only transformer.

    Attributes:
        parameters: all of them, a tied head once.
        layer_parameters: of one layer.
        hidden, intermediate, vocab, layers, heads, kv_heads, head_dim: as the config names them.
        max_positions: longest sequence.
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
        )

    @property
    def head_parameters(self) -> int:
        return self.vocab * self.hidden

    def key_value_bytes(self, positions: int, element_bytes: int) -> int:
        """A key-value cache: a key and a value a layer, for so many positions of all sequences together."""
        return 2 * self.layers * self.kv_heads * self.head_dim * positions * element_bytes


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
        return cls(tokens, KEYS_PER_TOKEN * tokens, longest * tokens)


def layer_activation_bytes(shape: ModelShape, row: Row, compute_bytes: int) -> int:
    """What one layer keeps for its backward pass; `compute_bytes` is 2 under bfloat16 autocast, else 4.

    The residual stream and the norms are float32 in either case. Autocast casts a norm's output anew for each linear
    layer that takes it: five times a layer, where float32 shares it, twice.
    """
    attention = shape.heads * shape.head_dim
    cast_inputs = (5 if compute_bytes < FLOAT32 else 2) * shape.hidden * compute_bytes
    a_token = (
        2 * shape.hidden * FLOAT32  # the residual stream, as it enters the attention's norm and the MLP's
        + 2 * shape.hidden * FLOAT32  # both, divided by their root mean square
        + 2 * FLOAT32  # the root mean squares
        + cast_inputs  # both norms' outputs, which the linear layers take: q, k, v; gate, up
        + attention * compute_bytes  # queries
        + 2 * attention * compute_bytes  # keys and values, repeated for the queries' heads
        + shape.heads * FLOAT32  # log-sum-exp of the scores
        + attention * compute_bytes  # what was attended to, segment by segment
        + attention * compute_bytes  # the same laid end to end: the output projection's input
        + 4 * shape.intermediate * compute_bytes  # gate, silu(gate), up, and silu(gate) * up
    )
    return (
        row.tokens * a_token
        + row.keys * 2 * attention * compute_bytes  # keys and values of each prompt again, once a response
        + row.pairs * compute_bytes  # the responses' masks, as numbers to add to the scores
    )


def saved_activation_bytes(shape: ModelShape, row: Row, compute_bytes: int, checkpointing: bool) -> int:
    """What all layers keep between the forward and the backward pass. A checkpointed layer keeps its input alone."""
    layer = row.tokens * shape.hidden * FLOAT32 if checkpointing else layer_activation_bytes(shape, row, compute_bytes)
    around_the_layers = (
        2 * shape.hidden * FLOAT32  # the last norm's input, and that divided by its root mean square
        + FLOAT32  # the root mean square
        + 2 * shape.head_dim * FLOAT32  # cosines and sines of the positions
        + 3 * 8  # token ids, labels, the places that predict them
    )
    return shape.layers * layer + row.tokens * around_the_layers


def layer_at_work_bytes(shape: ModelShape, row: Row, compute_bytes: int, checkpointing: bool) -> int:
    """What the backward pass of one layer adds: a few gradients, for what the layer saved is freed as they come, and
    all that the layer saves where it was not kept but computed again."""
    gradients = row.tokens * (2 * shape.hidden * FLOAT32 + 2 * shape.intermediate * compute_bytes)
    return gradients + (layer_activation_bytes(shape, row, compute_bytes) if checkpointing else 0)


def head_buffer_bytes(shape: ModelShape, tokens: int, compute_bytes: int) -> int:
    """What the chunked output head needs while it runs (numerics/log_probs.py), whatever the row's length."""
    rows = min(tokens, LOGITS_CHUNK_BYTES["cuda"] // (shape.vocab * FLOAT32))
    products = rows * shape.vocab * compute_bytes  # the chunk's one buffer
    block = min(BLOCK_BYTES["cuda"], rows * shape.vocab * FLOAT32)
    buffers = products + 3 * block  # a block's logits, masked; shifted; their exponentials
    if compute_bytes == FLOAT32:
        return buffers
    copy = shape.head_parameters * compute_bytes  # the head in the compute dtype
    product = shape.head_parameters * compute_bytes  # one chunk's part of the head's gradient, before it is added
    return buffers + copy + product


def layer_copy_bytes(shape: ModelShape, compute_bytes: int) -> int:
    """The copy in bfloat16 that autocast makes of one layer's weights."""
    return shape.layer_parameters * compute_bytes if compute_bytes < FLOAT32 else 0


def engine_bytes(shape: ModelShape, sequences: int, positions: int, element_bytes: int) -> int:
    """A rollout engine awake: its own weights, and the key-value cache of so many sequences of so many positions."""
    cached = sequences * min(positions, shape.max_positions)
    return shape.parameters * element_bytes + shape.key_value_bytes(cached, element_bytes)


@dataclass(frozen=True)
class MemoryPrediction:
    """Bytes on each GPU. Lines that do not apply are 0.

    Attributes:
        gpu: what the GPU has.
        row_tokens: of the largest microbatch.
        weights, optimizer: float32 master weights, AdamW's two moments.
        gradients, kept_gradients: while training; of these what stays allocated when they are cleared (DDP's buckets).
        reference: the initial policy, for a KL term.
        copies, backward_copies: of the layers' weights in bfloat16, in the forward and in the backward pass.
        gathered: parameters that a shard puts together to compute.
        saved_a_token: activations between the passes, per token of the row.
        hidden_a_token: hidden states that the head reads, and their gradients.
        work_a_token: of the layer whose backward pass runs.
        head_buffers: of the chunked output head while it runs.
        head_gradient: of one microbatch, from the head's run on, until it joins the others'.
        engine, engine_needs: the rollout engine awake; the least that it runs with.
        whole_weights, whole_optimizer: what a shard puts together for the engine, and for a checkpoint.
        reserve: see `RESERVE`.
    """

    gpu: int
    row_tokens: int
    weights: int
    optimizer: int
    gradients: int
    kept_gradients: int
    reference: int
    copies: int
    backward_copies: int
    gathered: int
    saved_a_token: int
    hidden_a_token: int
    work_a_token: int
    head_buffers: int
    head_gradient: int
    engine: int
    engine_needs: int
    whole_weights: int
    whole_optimizer: int
    reserve: int

    @property
    def phases(self) -> dict[str, dict[str, int]]:
        """What each phase holds, line by line, at its fullest; saving a checkpoint is a phase where there are shards.

        Between steps a row is scored without gradient: while the engine is awake, to prove what it holds.
        """
        other = {
            "rollouts": {
                "gradients, float32": self.kept_gradients,
                "copies of the weights, bfloat16": self.copies,
                "shards put together": self.gathered,
                "output head": self.head_buffers,
                "rollout engine": self.engine,
                "whole weights": self.whole_weights,
            }
        }
        if self.whole_optimizer:
            other["checkpoint"] = {
                "rollout engine": self.engine,
                "whole weights": self.whole_weights,
                "whole moments": self.whole_optimizer,
            }
        lasting = self._lasting()
        return {
            **self._training(self.row_tokens),
            **{phase: lasting | lines for phase, lines in other.items()},
        }

    def _lasting(self) -> dict[str, int]:
        return {
            "weights, float32": self.weights,
            "AdamW's two moments, float32": self.optimizer,
            "initial policy, for the KL term": self.reference,
            "reserve": self.reserve,
        }

    def _training(self, tokens: int) -> dict[str, dict[str, int]]:
        both = {
            **self._lasting(),
            "gradients, float32": self.gradients,
            "shards put together": self.gathered,
            "activations, saved": self.saved_a_token * tokens,
        }
        forward = {
            "copies of the weights, bfloat16": self.copies,
            "output head": self.head_buffers + self.head_gradient + self.hidden_a_token * tokens,
        }
        backward = {
            "copies of the weights, bfloat16": self.backward_copies,
            "output head": self.head_gradient,
            "activations, a layer's at work": self.work_a_token * tokens,
        }
        return {"forward": both | forward, "backward": both | backward}

    @property
    def totals(self) -> dict[str, int]:
        """Bytes of each phase."""
        return {phase: sum(lines.values()) for phase, lines in self.phases.items()}

    @property
    def total(self) -> int:
        """Bytes of the fullest phase."""
        return max(self.totals.values())

    def training(self, tokens: int) -> int:
        """Bytes of the fuller of the two phases in which the engine sleeps, for a microbatch of so many tokens."""
        return max(sum(lines.values()) for lines in self._training(tokens).values())

    @property
    def largest_token_budget(self) -> int:
        """Tokens of the largest microbatch that fits while training; 0 where none does."""
        empty, one = (
            [sum(lines.values()) for lines in self._training(tokens).values()]  # linear in the tokens
            for tokens in (0, 1)
        )
        fitting = min((self.gpu - fixed) // (with_one - fixed) for fixed, with_one in zip(empty, one, strict=True))
        return max(0, fitting // BUDGET_STEP * BUDGET_STEP)

    @property
    def largest_engine_share(self) -> float:
        """The largest share of the GPU that the engine can have beside the trainer, in hundredths; 0 where none."""
        others = max(total for phase, total in self.totals.items() if phase not in ("forward", "backward"))
        return max(0, math.floor(100 * (self.gpu - others + self.engine) / self.gpu)) / 100


def predict_memory(
    shape: ModelShape,
    *,
    gpu: int,
    row_tokens: int,
    longest: int,
    compute_bytes: int,
    checkpointing: bool = False,
    ranks: int = 1,
    sharded: bool = False,
    keep_reference: bool = False,
    engine: int = 0,
    engine_needs: int = 0,
) -> MemoryPrediction:
    """Predict what training with AdamW takes on each of the ranks' GPUs.

    Under DDP each rank holds everything. FSDP2, taken to wrap each layer, shards weights and moments; the gradients
    of all microbatches but a step's last stay whole on each rank, since ranks meet once a step (`Learner.step`).

    Args:
        shape: the model.
        gpu: bytes of each GPU.
        row_tokens: of the largest microbatch, packed.
        longest: tokens of the longest prompt with its response.
        compute_bytes: 2 for bfloat16 autocast, 4 for float32.
        checkpointing: of activations.
        ranks, sharded: how many there are, and whether by FSDP2.
        keep_reference: a copy of the initial policy stays on each GPU.
        engine, engine_needs: bytes of the rollout engine awake, and the least that it runs with.
    """
    count = shape.parameters
    shards = ranks if sharded else 1
    row = Row.filled(1, longest)
    copy = layer_copy_bytes(shape, compute_bytes)
    # The layer at work and the next one, beside what belongs to no layer and stays: embeddings, head, last norm.
    gathered = count - max(0, shape.layers - 2) * shape.layer_parameters
    return MemoryPrediction(
        gpu=gpu,
        row_tokens=row_tokens,
        weights=FLOAT32 * count // shards,
        optimizer=2 * FLOAT32 * count // shards,
        gradients=FLOAT32 * count,
        kept_gradients=FLOAT32 * count if ranks > 1 and not sharded else 0,
        reference=FLOAT32 * count if keep_reference else 0,
        copies=shape.layers * copy,
        backward_copies=copy if checkpointing else shape.layers * copy,
        gathered=FLOAT32 * gathered if sharded else 0,
        saved_a_token=saved_activation_bytes(shape, row, compute_bytes, checkpointing),
        hidden_a_token=2 * shape.hidden * FLOAT32,
        work_a_token=layer_at_work_bytes(shape, row, compute_bytes, checkpointing),
        head_buffers=head_buffer_bytes(shape, LOGITS_CHUNK_BYTES["cuda"], compute_bytes),  # tokens that fill a chunk
        head_gradient=FLOAT32 * shape.head_parameters,
        engine=engine,
        engine_needs=engine_needs,
        whole_weights=FLOAT32 * count if sharded else 0,
        whole_optimizer=2 * FLOAT32 * count if sharded else 0,
        reserve=int(RESERVE * gpu),
    )


def memory_table(prediction: MemoryPrediction) -> str:
    """The prediction as an aligned table, one column a phase, in GiB."""
    phases = prediction.phases
    names = list(dict.fromkeys(name for lines in phases.values() for name in lines))
    rows = [(name, [lines.get(name, 0) for lines in phases.values()]) for name in names]
    rows = [(name, values) for name, values in rows if any(values)]
    rows.append(("total", list(prediction.totals.values())))
    width = max(len(name) for name, _ in rows)
    lines = [f"predicted memory of each GPU, in GiB, of {prediction.gpu / GIB:.2f}"]
    lines.append(" " * width + "".join(f"{phase:>12}" for phase in phases))
    for name, values in rows:
        lines.append(f"{name:<{width}}" + "".join(f"{_in_gib(value):>12}" for value in values))
    lines.append(
        f"for a microbatch of {prediction.row_tokens:,} tokens; the largest --token-budget that fits: "
        f"{prediction.largest_token_budget:,}"
    )
    return "\n".join(lines)


def _in_gib(value: int) -> str:
    if value == 0:
        return "-"
    return "<0.01" if value < 0.01 * GIB else f"{value / GIB:.2f}"


def memory_advice(prediction: MemoryPrediction, shortest_row: int, checkpointing: bool, shorten: str) -> str | None:
    """What to change where a run does not fit; None where it does.

    Args:
        prediction: for the run.
        shortest_row: tokens below which a budget has no effect: a prompt and its response are never cut.
        checkpointing: whether the run has it already.
        shorten: what makes the longest sequence shorter.
    """
    if prediction.training(prediction.row_tokens) > prediction.gpu:
        if prediction.largest_token_budget >= shortest_row:
            return f"set --token-budget to {prediction.largest_token_budget} or less"
        if prediction.training(0) > prediction.gpu:
            return f"weights, gradients and moments alone are too much: {SMALLER}"
        if not checkpointing:
            return "set --activation-checkpointing"
        return f"one sequence is too much: {shorten}; or {SMALLER}"
    if prediction.total > prediction.gpu:
        share = prediction.largest_engine_share
        if share * prediction.gpu >= prediction.engine_needs:
            return f"set --gpu-memory-utilization (vLLM) to {share:.2f} or less, or lower --engine-batch-size"
        return f"weights and moments leave no room for the rollout engine: {SMALLER}"
    if prediction.engine < prediction.engine_needs:
        share = math.ceil(100 * prediction.engine_needs / prediction.gpu) / 100
        return f"set --gpu-memory-utilization to {share:.2f} or more: the engine's weights and one sequence need it"
    return None
