"""How full each GPU is in every phase of a run: the parts of `memory.py` added up, and printed as a table.

    sync         the engine's weights are awake, and take the policy's, one weight at a time
    proof        all of the engine is awake, and the trainer scores a few of its tokens
    rollouts     the engine samples
    forward      at its fullest: activations of all layers, and the output head at work
    backward     in its first layer, before what was kept is freed; it puts layers together again
    embedding    at the end of the backward pass, which gives the embedding its gradient
    step         gradients, moments, weights
    checkpoint   weights and moments on their way to the CPU, one at a time

The engine sleeps from the forward pass to the checkpoint. AdamW's moments appear with the first step: a run that fits
without them fails in the second. The `RESERVE` is an allowance, not a measurement.
"""

import math
from dataclasses import dataclass, replace

from cs336_alignment.training.memory import (
    FLOAT32,
    GIB,
    NO_ENGINE,
    Arrangement,
    Engine,
    ModelShape,
    Row,
    embedding_gradient_bytes,
    gathered_bytes,
    head_buffer_bytes,
    head_gradient_bytes,
    hidden_bytes,
    layer_at_work_bytes,
    saved_activation_bytes,
    waiting_head_gradient_bytes,
    weight_copy_bytes,
)

RESERVE = int(3.5 * GIB)
"""Left to what is not predicted, whatever the GPU's size: CUDA's context (0.5 GiB), NCCL's buffers, libraries'
workspaces, a sleeping engine's graphs (0.5 to 1), fragmentation of torch's allocator. An allowance."""
BUDGET_STEP = 64
"""The largest token budget is rounded down to a multiple of this."""

Lines = dict[str, int]
"""What a phase holds: a name and its bytes."""


@dataclass(frozen=True)
class ProofSize:
    """Tokens that are scored without gradient while the engine is awake.

    Attributes:
        tokens: of prompts and responses.
        responses: of responses alone.
    """

    tokens: int
    responses: int


@dataclass(frozen=True)
class MemoryPrediction:
    """Bytes on each GPU.

    Attributes:
        shape, how: the policy.
        gpu: what the GPU has.
        row_tokens: of the largest microbatch.
        longest: tokens of the longest prompt with its response.
        proof: what the trainer scores to prove the engine.
        engine: the rollout engine.
    """

    shape: ModelShape
    how: Arrangement
    gpu: int
    row_tokens: int
    longest: int
    proof: ProofSize = ProofSize(0, 0)
    engine: Engine = NO_ENGINE

    @property
    def phases(self) -> dict[str, Lines]:
        """What each phase holds, line by line; lines that do not apply are 0."""
        return {**self._engine_awake(), **self._training(self.row_tokens), "checkpoint": self._checkpoint()}

    @property
    def totals(self) -> dict[str, int]:
        """Bytes of each phase."""
        return _totals(self.phases)

    @property
    def total(self) -> int:
        """Bytes of the fullest phase."""
        return max(self.totals.values())

    @property
    def fits(self) -> bool:
        """Whether no phase takes more than the GPU has, and the engine has what it needs to start."""
        return self.total <= self.gpu and self.engine.awake >= self.engine.least

    def training(self, tokens: int) -> int:
        """Bytes of the fullest phase in which the engine sleeps, for a microbatch of so many tokens."""
        return max(_totals(self._training(tokens)).values())

    @property
    def largest_token_budget(self) -> int:
        """Tokens of the largest microbatch that fits while training; 0 where none does."""
        if self.training(BUDGET_STEP) > self.gpu:
            return 0
        empty, some = (_totals(self._training(tokens)) for tokens in (0, BUDGET_STEP))  # all but linear in the tokens
        growing = [phase for phase in empty if some[phase] > empty[phase]]
        steps = min((self.gpu - empty[phase]) // (some[phase] - empty[phase]) for phase in growing)
        while self.training((steps + 1) * BUDGET_STEP) <= self.gpu:
            steps += 1
        return steps * BUDGET_STEP

    @property
    def largest_engine_share(self) -> float:
        """The largest share of the GPU that the engine can have beside the trainer, in hundredths; 0 where none."""
        others = max(self.totals[phase] for phase in ("proof", "rollouts")) - self.engine.awake
        return max(0, math.floor(100 * (self.gpu - others) / self.gpu)) / 100

    def with_share(self, share: float) -> "MemoryPrediction":
        """The same with another share of the GPU for the engine."""
        return replace(self, engine=replace(self.engine, awake=int(share * self.gpu)))

    def _lasting(self) -> Lines:
        count = self.shape.parameters * FLOAT32 // self.how.shards
        return {
            "weights, float32": count,
            "AdamW's two moments, float32": 2 * count,
            "initial policy, for the KL term": count if self.how.keep_reference else 0,
            "reserve": RESERVE,
        }

    def _engine_awake(self) -> dict[str, Lines]:
        shape, how, engine = self.shape, self.how, self.engine
        lasting = self._lasting()
        row = Row.filled(self.proof.tokens, self.longest)
        copies = {"copies of the weights, bfloat16": weight_copy_bytes(shape, how, shape.layers)}
        at_a_layer = {
            "put together from shards": gathered_bytes(shape, how, layers=3),  # two buffers and a layer
            **copies,
            "activations, a layer's at work": layer_at_work_bytes(shape, replace(how, checkpointing=False), row),
        }
        at_the_head = {
            "put together from shards": gathered_bytes(shape, how, layers=1),
            **copies,
            "output head": head_buffer_bytes(shape, how, self.proof.responses),
        }
        scoring = max(at_a_layer, at_the_head, key=lambda lines: sum(lines.values()))
        return {
            "sync": {
                **lasting,
                "rollout engine": engine.weights,
                "a weight on its way": self._whole(engine.element_bytes) + engine.copies,
            },
            "proof": {**lasting, **scoring, "rollout engine": engine.awake},
            "rollouts": {**lasting, "rollout engine": engine.awake},
        }

    def _training(self, tokens: int) -> dict[str, Lines]:
        shape, how = self.shape, self.how
        row = Row.filled(tokens, self.longest)
        lasting = {**self._lasting(), "gradients, float32": FLOAT32 * shape.parameters // how.shards}
        saved = {"activations, saved": saved_activation_bytes(shape, how, row)}
        waiting = waiting_head_gradient_bytes(shape, how)
        layers = 1 if how.checkpointing else shape.layers
        # A layer's gradient, and the same in float32 on its way to the other ranks.
        layer_gradient = shape.layer_parameters * (how.compute_bytes + FLOAT32) if how.sharded else 0
        return {
            "forward": {
                **lasting,
                **saved,
                "put together from shards": gathered_bytes(shape, how, layers=1),
                "copies of the weights, bfloat16": weight_copy_bytes(shape, how, shape.layers),
                "output head": head_buffer_bytes(shape, how, tokens)
                + head_gradient_bytes(shape, how)
                + tokens * hidden_bytes(shape, how),
            },
            "backward": {
                **lasting,
                **saved,
                "put together from shards": gathered_bytes(shape, how, layers=2),
                "gradients on their way": layer_gradient,
                "copies of the weights, bfloat16": weight_copy_bytes(shape, how, layers),
                "activations, a layer's at work": layer_at_work_bytes(shape, how, row),
                "output head": waiting,
            },
            "embedding": {
                **lasting,
                "put together from shards": gathered_bytes(shape, how, layers=0),
                "gradients on their way": embedding_gradient_bytes(shape, how),
            },
            "step": lasting,
        }

    def _checkpoint(self) -> Lines:
        whole = self._whole(FLOAT32) if self.how.sharded else 0
        return {**self._lasting(), "a weight on its way": whole}

    def _whole(self, element_bytes: int) -> int:
        """The largest weight, converted where it lies and then put together."""
        converted = self.shape.head_parameters * element_bytes
        copy = converted // self.how.shards if element_bytes != FLOAT32 else 0
        return copy + (converted if self.how.sharded else 0)


def _totals(phases: dict[str, Lines]) -> dict[str, int]:
    return {phase: sum(lines.values()) for phase, lines in phases.items()}


def memory_table(prediction: MemoryPrediction) -> str:
    """The prediction as an aligned table, one column a phase, in GiB."""
    phases = prediction.phases
    names = list(dict.fromkeys(name for lines in phases.values() for name in lines))
    rows = [(name, [lines.get(name, 0) for lines in phases.values()]) for name in names]
    rows = [(name, values) for name, values in rows if any(values)]
    rows.append(("total", list(prediction.totals.values())))
    width = max(len(name) for name, _ in rows)
    lines = [f"predicted memory of each GPU, in GiB, of {prediction.gpu / GIB:.2f}"]
    lines.append(" " * width + "".join(f"{phase:>11}" for phase in phases))
    for name, values in rows:
        lines.append(f"{name:<{width}}" + "".join(f"{_in_gib(value):>11}" for value in values))
    return "\n".join(lines)


def _in_gib(value: int) -> str:
    if value == 0:
        return "-"
    return "<0.01" if value < 0.01 * GIB else f"{value / GIB:.2f}"
