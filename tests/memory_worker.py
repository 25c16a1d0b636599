"""What a small policy takes of a CPU's memory in each phase of a run, on one rank or on each of two.

torchrun --nproc_per_node 2 -m tests.memory_worker OUTPUT
"""

import json
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, Olmo2Config, Qwen2Config

from cs336_alignment.numerics import log_probs
from cs336_alignment.ranks import Ranks, leave_peers
from cs336_alignment.training.learner import Learner, OptimizerConfig
from cs336_alignment.training.packing import PACKED_ATTENTION, PackedBatch, TokenExample, pack
from cs336_alignment.training.policy import Policy, checkpoint_layers
from tests.live_bytes import LiveBytes

SIZES: Any = {"hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 4, "intermediate_size": 1024}
SIZES |= {"vocab_size": 2000, "max_position_embeddings": 1024}
SPECIAL: Any = {"bos_token_id": None, "eos_token_id": 1, "pad_token_id": None}
CONFIGS = {
    "qwen2": Qwen2Config(**SIZES, **SPECIAL, num_key_value_heads=2, tie_word_embeddings=True),
    "olmo2": Olmo2Config(**SIZES, **SPECIAL, num_key_value_heads=4, tie_word_embeddings=False),
    # So few tokens and layers that the embedding's gradient is what fills the backward pass.
    "wide": Qwen2Config(
        **{**SIZES, "vocab_size": 20000, "num_hidden_layers": 2},
        **SPECIAL,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    ),
}
CASES: list[tuple[str, str, bool]] = [
    *product(("qwen2",), ("float32", "bfloat16"), (False, True)),
    ("olmo2", "float32", False),
    ("olmo2", "bfloat16", True),
    ("wide", "bfloat16", True),
]
"""(config, compute dtype, checkpointing)"""
PADDING = 8
"""Rows of the head without a token."""


class Vocabulary:
    """What a policy asks of a tokenizer: how many tokens it has."""

    def __init__(self, size: int) -> None:
        self._size = size

    def __len__(self) -> int:
        return self._size


def groups(name: str, scored: bool = False) -> list[TokenExample]:
    """Two prompts with some responses each."""
    size, prompt, response = (2, 60, 16) if scored else (1, 4, 40) if name == "wide" else (4, 60, 100)
    return [
        TokenExample(tuple(range(first, first + prompt)), tuple(range(5, 5 + response)))
        for first in (10, 11)
        for _ in range(size)
    ]


def batch_of(name: str) -> PackedBatch:
    return pack(groups(name), torch.device("cpu"))


def measure(name: str, dtype: str, checkpointing: bool, ranks: Ranks, folder: Path) -> dict[str, int]:
    """The most bytes in each phase, all that the trainer holds included, and what is left after the sync."""
    config = CONFIGS[name]
    model = AutoModelForCausalLM.from_config(config, attn_implementation=PACKED_ATTENTION).float().eval()
    if checkpointing:
        checkpoint_layers(model)
    compute = torch.bfloat16 if dtype == "bfloat16" else None
    policy = Policy(model, Vocabulary(config.vocab_size - PADDING), compute_dtype=compute)
    learner = Learner(policy, OptimizerConfig(token_budget=4096), ranks, folder)
    learner.step(groups(name), torch.ones(len(groups(name))), lambda _: _loss)
    held = [*policy.parameters(), *(tensor for state in learner.optimizer.state.values() for tensor in state.values())]
    batch = batch_of(name)
    policy(batch, _loss).loss.backward()  # a first microbatch, so that gradients are there in the second
    phases = {}
    with LiveBytes(*held, *(parameter.grad for parameter in policy.parameters() if parameter.grad is not None)) as live:
        scores = policy(batch, _loss)
        phases["forward"] = live.peak()
        scores.loss.backward()
        phases["backward"] = live.peak()
        del scores
        learner.optimizer.step()
        phases["step"] = live.peak()
    learner.optimizer.zero_grad()
    engine = {key: torch.zeros(tensor.shape, dtype=torch.bfloat16) for key, tensor in model.state_dict().items()}
    with LiveBytes(*held, *engine.values()) as live:
        load(engine, policy.weights(torch.bfloat16))
        phases["sync"] = live.peak()
        policy.weight_sums(torch.bfloat16)
        phases["sums"] = live.peak()
        learner.score(groups(name, scored=True))
        phases["proof"] = live.peak()
        phases["after"] = live.now
    return phases


def load(engine: dict[str, torch.Tensor], weights: Iterator[tuple[str, torch.Tensor]]) -> None:
    for name, tensor in weights:
        engine[name].copy_(tensor)


def _loss(log_probs: torch.Tensor, _: slice) -> torch.Tensor:
    return -log_probs


def measure_all(folder: Path) -> dict[str, dict[str, int]]:
    """Every case on this rank; what lies between the head's matrix products is done in a GPU's blocks."""
    ranks = Ranks()
    cpu_blocks = log_probs.BLOCK_BYTES["cpu"]
    log_probs.BLOCK_BYTES["cpu"] = log_probs.BLOCK_BYTES["cuda"]
    try:
        return {" ".join(map(str, case)): measure(*case, ranks=ranks, folder=folder) for case in CASES}
    finally:
        log_probs.BLOCK_BYTES["cpu"] = cpu_blocks


if __name__ == "__main__":
    output = Path(sys.argv[1])
    measured = measure_all(output.parent)
    if Ranks().is_main:
        output.write_text(json.dumps(measured))
    leave_peers()
