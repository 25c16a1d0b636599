"""Log-probs of a large vocabulary, forward and backward: time and memory of this library's paths and of others'.

    uv run --group benchmarks python scripts/benchmarks/log_probs.py [--tokens 2048] [--rounds 3]

Hidden states and an output head go in; the loss is a weighted sum of the labels' log-probs; the gradients of both come
out. Everything before the head is left out, for it is the same for all. The variants:

    products             the three matrix products alone, on full logits: the floor of what does not recompute
    plain                get_response_log_probs: full logits, and entropy is not asked for
    log_softmax          full logits, torch.log_softmax and gather: the leanest plain path that torch offers
    trl                  full logits and TRL's selective_log_softmax, a sequence at a time
    trl_fused            what TRL's trainers call since release 1.15: tiles over tokens and vocabulary, recomputed
    chunked_log_probs    this library's, recomputes; entropy comes with it
    chunked_token_loss   this library's, does not; entropy comes with it

Extra memory is the peak of the process (ru_maxrss) beyond what it held once weights, inputs and one touched gradient
buffer of the head were there. That buffer is given back before the clock starts, for each variant makes its own. What
is left is logits, their copies, and whatever the matrix products allocate.
"""

import argparse
import itertools
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from cs336_alignment.numerics.log_probs import chunked_log_probs, chunked_token_loss, get_response_log_probs
from scripts.benchmarks.side_by_side import (
    Measurement,
    Stopwatch,
    command_line,
    machine,
    peak_bytes,
    relative_difference,
    take_turns,
    times,
)

TIME_BARS = {"chunked_log_probs": 1.4, "chunked_token_loss": 1.15}
REFERENCES = ("plain", "log_softmax", "trl", "trl_fused")
KEPT_ROWS = 997
"""Every so many rows of the head's gradient are compared, and its whole norm."""


class Inputs:
    """The same for every variant."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        torch.manual_seed(0)
        self.sequences = arguments.sequences
        self.hidden = torch.randn(arguments.tokens, arguments.hidden).requires_grad_()
        # Logits of standard deviation 2: distributions as sharp as a language model's.
        self.weight = torch.randn(arguments.vocab, arguments.hidden).mul_(2 / arguments.hidden**0.5).requires_grad_()
        self.labels = torch.randint(arguments.vocab, (arguments.tokens,))
        self.factors = torch.randn(arguments.tokens) / arguments.tokens

    @property
    def by_sequence(self) -> Tensor:
        """The logits as (sequences, tokens each, vocabulary)."""
        return (self.hidden @ self.weight.T).view(self.sequences, -1, len(self.weight))


def products(inputs: Inputs) -> Tensor:
    logits = inputs.hidden @ inputs.weight.T
    logits.backward(logits.detach())
    return torch.zeros_like(inputs.factors)


def plain(inputs: Inputs) -> Tensor:
    ids = inputs.labels.unsqueeze(0)

    def model(_: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=(inputs.hidden @ inputs.weight.T).unsqueeze(0))

    return _backward(inputs, get_response_log_probs(model, ids, ids)["log_probs"][0])


def log_softmax(inputs: Inputs) -> Tensor:
    log_p = torch.log_softmax(inputs.hidden @ inputs.weight.T, dim=-1)
    return _backward(inputs, log_p.gather(1, inputs.labels.unsqueeze(1)).squeeze(1))


def trl(inputs: Inputs) -> Tensor:
    from trl.trainer.utils import selective_log_softmax  # pyright: ignore[reportMissingImports]

    scores = selective_log_softmax(inputs.by_sequence, inputs.labels.view(inputs.sequences, -1))
    return _backward(inputs, scores.flatten())


def trl_fused(inputs: Inputs) -> Tensor:
    from trl.kernels import ChunkedLogProbFunction  # pyright: ignore[reportMissingImports]
    from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE as TILE  # pyright: ignore[reportMissingImports]

    wanted = ("log_probs", "entropy")
    outputs: Any = ChunkedLogProbFunction.apply(
        inputs.hidden, inputs.weight, None, inputs.labels, 1.0, TILE, None, 1.0, wanted
    )
    return _backward(inputs, outputs[0])


def recomputing(inputs: Inputs) -> Tensor:
    log_probs, _ = chunked_log_probs(inputs.hidden, inputs.weight, inputs.labels)
    return _backward(inputs, log_probs)


def not_recomputing(inputs: Inputs) -> Tensor:
    loss, log_probs, _ = chunked_token_loss(
        inputs.hidden, inputs.weight, inputs.labels, lambda log_probs, at: -inputs.factors[at] * log_probs
    )
    loss.backward()
    return log_probs


def _backward(inputs: Inputs, log_probs: Tensor) -> Tensor:
    (-inputs.factors * log_probs).sum().backward()
    return log_probs.detach()


VARIANTS: dict[str, Callable[[Inputs], Tensor]] = {
    "products": products,
    "plain": plain,
    "log_softmax": log_softmax,
    "trl": trl,
    "trl_fused": trl_fused,
    "chunked_log_probs": recomputing,
    "chunked_token_loss": not_recomputing,
}


def measure(arguments: argparse.Namespace) -> None:
    """One variant, in this process; its values and gradients go beside the result."""
    small = argparse.Namespace(tokens=8, hidden=8, vocab=32, sequences=1)
    VARIANTS[arguments.variant](Inputs(small))  # imports and thread pools
    inputs = Inputs(arguments)
    torch.ones_like(inputs.weight)  # the gradient buffer, touched and given back
    before = peak_bytes()
    stopwatch = Stopwatch().start()
    log_probs = VARIANTS[arguments.variant](inputs)
    measurement = {**stopwatch.read(), "extra": peak_bytes() - before}
    assert inputs.hidden.grad is not None
    assert inputs.weight.grad is not None
    values = {
        "log_probs": log_probs,
        "hidden": inputs.hidden.grad,
        "weight": inputs.weight.grad[::KEPT_ROWS].clone(),
        "weight_norm": inputs.weight.grad.norm(),
    }
    torch.save(values, arguments.result.with_name(f"{arguments.variant}.pt"))
    arguments.result.write_text(json.dumps(measurement))


def main() -> None:
    arguments = parse()
    if arguments.variant:
        measure(arguments)
        return
    options = command_line(arguments, but=("rounds", "variant", "result"))
    print(machine())
    print(f"{arguments.tokens} tokens, hidden {arguments.hidden}, vocabulary {arguments.vocab}, float32")
    with tempfile.TemporaryDirectory() as folder:
        options = command_line(arguments, but=("variants", "rounds", "variant", "result"))
        rounds = take_turns(__file__, arguments.variants, arguments.rounds, options, Path(folder))
        values = {variant: torch.load(Path(folder) / f"{variant}.pt") for variant in arguments.variants}
    print_table(rounds, values)


def print_table(rounds: dict[str, list[Measurement]], values: dict[str, dict[str, Tensor]]) -> None:
    """Each variant beside the plain path, and where this library's stand to the bars."""
    spent = {variant: times(measured) for variant, measured in rounds.items()}
    memory = {variant: max(1, *(now["extra"] for now in measured)) for variant, measured in rounds.items()}
    print(f"{'variant':20} {'min s':>7} {'median':>7} {'cpu s':>7} {'extra MiB':>10} {'differs by':>11}")
    for variant, time in spent.items():
        differs = "" if variant == "products" else f"{_difference(values[variant], values['plain']):.1e}"
        print(
            f"{variant:20} {time.least:7.2f} {time.median:7.2f} {time.cpu:7.2f} {memory[variant] / 2**20:10.0f} "
            f"{differs:>11}"
        )
    for variant, other in itertools.product(TIME_BARS, REFERENCES):
        if variant in spent and other in spent:
            print(
                f"{variant} / {other}: time {spent[variant].least / spent[other].least:.2f}, cpu time "
                f"{spent[variant].cpu / spent[other].cpu:.2f}, memory 1/{memory[other] / memory[variant]:.1f}"
            )
    print(f"bars: memory 1/8 of plain and of trl; time against plain: {TIME_BARS}")


def _difference(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest relative difference among log-probs and gradients."""
    return max(relative_difference(found[name], expected[name]) for name in expected)


def parse(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--hidden", type=int, default=1536)
    parser.add_argument("--vocab", type=int, default=151_936)
    parser.add_argument("--sequences", type=int, default=8, help="the tokens are so many sequences, to TRL's way")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), help="`plain` and others")
    parser.add_argument("--variant", choices=VARIANTS, help="measure this one, in this process")
    parser.add_argument("--result", type=Path, help="where the measurement goes")
    return parser.parse_args(given)


if __name__ == "__main__":
    main()
