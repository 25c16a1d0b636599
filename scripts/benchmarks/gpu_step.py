"""Forward and backward pass of one packed row on a GPU: tokens a second, share of its peak, memory, attention.

    uv run python scripts/benchmarks/gpu_step.py [--token-budget 4096] [--activation-checkpointing] [--result FILE]
    uv run python scripts/benchmarks/gpu_step.py --device cpu --layers 2 --hidden 64 --intermediate 128 --heads 4 \\
        --kv-heads 2 --vocab 500 --token-budget 256      # the same code in small, without the figures of a GPU

The model has Qwen2.5-1.5B's shape and random weights, so nothing is downloaded; it holds float32 weights, gradients and
AdamW's moments, and computes in bfloat16. The row holds groups of 8 responses behind one copy of their prompt, and the
prompts behind what they share. Measured are the row through the attention kernel (training/varlen.py), the same row
through the segment path that the tests hold to the equations, and attention alone on both, against the segment path in
float32.

    MFU = FLOPs / (seconds * peak)
    FLOPs = 6 * tokens * layers * parameters of a layer  +  6 * response tokens * vocab * hidden
            +  12 * layers * heads * head_dim * pairs

A forward pass takes 2 FLOPs a weight and token, a backward pass twice as many. `pairs` counts each query with each key
that it sees; scores and weighted values take 4 FLOPs a pair and component. What activation checkpointing computes again
is not counted. `peak` is the GPU's dense bfloat16 rate after its data sheet.

This script has run on a CPU, in small. Nobody has run it on a GPU yet.
"""

import argparse
import json
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, Qwen2Config

from cs336_alignment.ranks import Ranks
from cs336_alignment.training import packing
from cs336_alignment.training.learner import Learner, OptimizerConfig
from cs336_alignment.training.memory import GIB, Arrangement, ModelShape
from cs336_alignment.training.memory_phases import RESERVE, MemoryPrediction
from cs336_alignment.training.microbatch import backward_microbatch
from cs336_alignment.training.packing import (
    PACKED_ATTENTION,
    Layout,
    PackedBatch,
    TokenExample,
    pack,
    packed_attention,
    packed_tokens,
)
from cs336_alignment.training.policy import Policy, checkpoint_layers
from scripts.benchmarks.side_by_side import relative_difference

PEAK_TFLOPS = {
    # Dense bfloat16 on tensor cores, after NVIDIA's data sheets; the first whose words are all in the device's name.
    "B200": 2250.0,
    "H200": 989.0,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.0,
    "A100": 312.0,
    "L40S": 362.0,
    "A40": 150.0,
    "A10": 125.0,
    "L4": 121.0,
}
GROUP_SIZE = 8
UNUSED_ROWS = 271
"""Rows of Qwen2.5's head that its tokenizer has no token for."""


@dataclass(frozen=True)
class Measurement:
    """Of one row, forward and backward.

    Attributes:
        path: "kernel" or "segments".
        tokens: of the packed row.
        seconds: median of the rounds.
        tflops: 10^12 FLOPs a second, by the module's formula.
        mfu: of the peak; None where the peak is not known.
        peak_gib, predicted_gib: memory allocated at its most, and what the table says of it without its reserve; None
            on a CPU.
    """

    path: str
    tokens: int
    seconds: float
    tflops: float
    mfu: float | None
    peak_gib: float | None
    predicted_gib: float | None


@dataclass(frozen=True)
class AttentionMeasurement:
    """Of one layer's attention alone, forward and backward.

    Attributes:
        path: "kernel" or "segments".
        milliseconds: median of the rounds.
        output, query, key, value: relative differences of the output and of the three gradients from the segment path
            in float32, on the same bfloat16 inputs.
    """

    path: str
    milliseconds: float
    output: float
    query: float
    key: float
    value: float


def parse(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--hidden", type=int, default=1536)
    parser.add_argument("--intermediate", type=int, default=8960)
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--kv-heads", type=int, default=2)
    parser.add_argument("--vocab", type=int, default=151936)
    parser.add_argument("--prompt-tokens", type=int, default=200, help="of each prompt; three fifths are shared by all")
    parser.add_argument("--response-tokens", type=int, default=160)
    parser.add_argument("--token-budget", type=int, default=4096, help="longest packed row, in tokens")
    parser.add_argument("--activation-checkpointing", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peak-tflops", type=float, help="of the GPU; default: by its name")
    parser.add_argument("--result", type=Path, help="write the figures there too, as JSON")
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> None:
    options = parse(words)
    if options.device == "cuda" and not torch.cuda.is_available():
        print("error: there is no GPU here; --device cpu with a small shape runs the same code", file=sys.stderr)
        sys.exit(2)
    device = torch.device(options.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    peak = options.peak_tflops or peak_tflops(name)
    print(f"{name}, torch {torch.__version__}, peak {f'{peak:g} TFLOP/s' if peak else 'not known: no MFU'}")
    batch = row(options, device)
    learner = make_learner(options)
    found = [measure_step(options, learner, batch, path, peak) for path in paths(device, options)]
    print_table(found)
    del learner
    attention = measure_attention(options, batch.layout, device)
    print_table(attention)
    if "kernel" not in paths(device, options):
        print("no attention kernel serves this device and head width: the segment path alone")
    if options.result:
        figures = {"device": name, "torch": torch.__version__, "peak_tflops": peak}
        figures |= {"step": [asdict(one) for one in found], "attention": [asdict(one) for one in attention]}
        options.result.write_text(json.dumps(figures, indent=2) + "\n")


def peak_tflops(name: str) -> float | None:
    """By the words of a device's name; None for one that is not in the table, and for a slice of a GPU."""
    words = set(re.split(r"[ -]", name))
    return (
        None if "MIG" in words else next((peak for key, peak in PEAK_TFLOPS.items() if set(key.split()) <= words), None)
    )


def row(options: argparse.Namespace, device: torch.device) -> PackedBatch:
    """Groups of random tokens, as many responses as the budget holds."""
    generator = torch.Generator().manual_seed(0)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(options.vocab // 2, (count,), generator=generator).tolist())

    stem = ids(options.prompt_tokens * 3 // 5)
    examples: list[TokenExample] = []
    while True:
        prompt = stem + ids(options.prompt_tokens - len(stem))
        for _ in range(GROUP_SIZE):
            longer = [*examples, TokenExample(prompt, ids(options.response_tokens))]
            if examples and packed_tokens(longer) > options.token_budget:
                return pack(examples, device)
            examples = longer


def make_learner(options: argparse.Namespace) -> Learner:
    """The model, with gradients and AdamW's moments, as in the second step of a run."""
    torch.manual_seed(0)
    config = Qwen2Config(
        hidden_size=options.hidden,
        num_hidden_layers=options.layers,
        num_attention_heads=options.heads,
        num_key_value_heads=options.kv_heads,
        intermediate_size=options.intermediate,
        vocab_size=options.vocab,
        tie_word_embeddings=True,
        max_position_embeddings=options.prompt_tokens + options.response_tokens,
    )
    model: Any = AutoModelForCausalLM.from_config(config, attn_implementation=PACKED_ATTENTION, dtype=torch.float32)
    model.eval()
    if options.activation_checkpointing:
        checkpoint_layers(model)
    # Of a tokenizer a policy's forward pass needs the length alone.
    tokenizer = range(options.vocab - min(UNUSED_ROWS, options.vocab // 10))
    policy = Policy(model, tokenizer, compute_dtype=torch.bfloat16)
    learner = Learner(policy, OptimizerConfig(learning_rate=1e-6), Ranks(), Path(tempfile.gettempdir()))
    if learner.ranks.device.type != options.device:
        raise SystemExit(f"error: this machine trains on {learner.ranks.device.type}, not on {options.device}")
    learner.step([TokenExample((1, 2), (3, 4))], torch.ones(1), lambda _: loss)
    return learner


def loss(log_probs: Tensor, at: slice) -> Tensor:
    return -log_probs


def paths(device: torch.device, options: argparse.Namespace) -> list[str]:
    served = packing.choose_kernel(device, torch.bfloat16, options.hidden // options.heads) is not None
    return ["kernel", "segments"] if served else ["segments"]


@contextmanager
def attending_by(path: str) -> Iterator[None]:
    """As `packed_attention` chooses, or through the segment path whatever it would choose."""
    if path == "kernel":
        yield
    else:
        with patch.object(packing, "choose_kernel", lambda *_: None):
            yield


def seconds_of(run: Callable[[], object], rounds: int, device: torch.device) -> float:
    """The median of some rounds, after two that warm up."""
    taken = []
    for _ in range(rounds + 2):
        _wait(device)
        start = time.perf_counter()
        run()
        _wait(device)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken[2:])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure_step(
    options: argparse.Namespace, learner: Learner, batch: PackedBatch, path: str, peak: float | None
) -> Measurement:
    shape = ModelShape.from_config(learner.policy.model.config)
    device, on_gpu = learner.policy.device, learner.policy.device.type == "cuda"
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    with attending_by(path):
        seconds = seconds_of(lambda: backward_microbatch(learner.policy, batch, loss), options.rounds, device)
    tflops = flops(shape, batch.layout, len(batch.labels)) / seconds / 1e12
    predicted = MemoryPrediction(
        shape,
        Arrangement(compute_bytes=2, checkpointing=options.activation_checkpointing),
        gpu=torch.cuda.get_device_properties(device).total_memory if on_gpu else 0,
        row_tokens=batch.row_tokens,
        longest=options.prompt_tokens + options.response_tokens,
    )
    return Measurement(
        path=path,
        tokens=batch.row_tokens,
        seconds=seconds,
        tflops=tflops,
        mfu=tflops / peak if peak else None,
        peak_gib=torch.cuda.max_memory_allocated(device) / GIB if on_gpu else None,
        predicted_gib=(predicted.training(batch.row_tokens) - RESERVE) / GIB if on_gpu else None,
    )


def flops(shape: ModelShape, layout: Layout, response_tokens: int) -> float:
    """Of a row's forward and backward pass; see the top of the file."""
    pairs = sum(
        segment.length * layout.followed(segment) + segment.length * (segment.length + 1) // 2
        for segment in layout.segments
    )
    layers = 6 * sum(layout.lengths) * shape.layers * shape.layer_parameters
    head = 6 * response_tokens * shape.head_parameters
    return layers + head + 12 * shape.layers * shape.heads * shape.head_dim * pairs


def measure_attention(options: argparse.Namespace, layout: Layout, device: torch.device) -> list[AttentionMeasurement]:
    """One layer's attention, on inputs that a rotary embedding could have left."""
    torch.manual_seed(0)
    width, tokens = options.hidden // options.heads, sum(layout.lengths)
    heads = (options.heads, options.kv_heads, options.kv_heads)
    inputs = [torch.randn(1, count, tokens, width, device=device).bfloat16() for count in heads]
    slope = torch.randn(1, tokens, options.heads, width, device=device)

    def run(dtype: torch.dtype) -> list[Tensor]:
        query, key, value = (tensor.detach().to(dtype).requires_grad_() for tensor in inputs)
        attended, _ = packed_attention(torch.nn.Identity(), query, key, value, None, layout=layout)
        return [attended.detach(), *torch.autograd.grad((attended * slope.to(dtype)).sum(), (query, key, value))]

    with attending_by("segments"):
        expected = run(torch.float32)
    found = []
    for path in paths(device, options):
        with attending_by(path):
            differences = [
                relative_difference(tensor.float(), reference)
                for tensor, reference in zip(run(torch.bfloat16), expected, strict=True)
            ]
            seconds = seconds_of(lambda: run(torch.bfloat16), options.rounds, device)
        output, query, key, value = differences
        found.append(AttentionMeasurement(path, 1000 * seconds, output, query, key, value))
    return found


def print_table(rows: list[Any]) -> None:
    """One line a measurement, a column a field."""
    columns = [[name, *(_cell(getattr(one, name)) for one in rows)] for name in asdict(rows[0])]
    for line in zip(*columns, strict=True):
        print("  ".join(cell.rjust(max(map(len, column))) for cell, column in zip(line, columns, strict=True)))


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
