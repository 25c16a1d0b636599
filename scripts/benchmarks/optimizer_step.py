"""What grpo_step.py and sft_step.py share: one optimiser step of this library's Learner beside one of a TRL trainer.

Each variant is a process that takes two steps on the same batch. Before the first update its gradient is kept: this
library's is written down, TRL's is compared with it. The second step is the one that is timed. Both sides hold float32
weights, clip (at a norm that is never reached), and step a fused AdamW; neither recomputes activations.
"""

import argparse
import json
import random
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from cs336_alignment.ranks import Ranks
from cs336_alignment.tasks.gsm8k import load_problems
from cs336_alignment.tasks.problem import Problem
from cs336_alignment.training.learner import Learner, OptimizerConfig
from cs336_alignment.training.policy import Policy
from scripts.benchmarks.side_by_side import (
    Measurement,
    Stopwatch,
    command_line,
    machine,
    relative_difference,
    take_turns,
    times,
)

OURS = "this library"
GRADIENT_BAR = 1e-3
NO_CLIPPING = 1e9
MATRIX_PRODUCTS = ("mm", "addmm", "addmm_", "bmm", "baddbmm", "matmul", "linear")


@dataclass(frozen=True)
class StepBenchmark:
    """One of the two benchmarks.

    Attributes:
        script: its file.
        ours: (arguments, learner, tokenizer) -> a function that takes one step and returns how many tokens it ran.
        theirs: (arguments, variant, callback, scratch folder) -> a TRL trainer, ready for `train()`.
        variants: of TRL, from the arguments.
    """

    script: str
    ours: Callable[[argparse.Namespace, Learner, Any], Callable[[], int]]
    theirs: Callable[[argparse.Namespace, str, TrainerCallback, str], Any]
    variants: Callable[[argparse.Namespace], list[str]]


def run(benchmark: StepBenchmark, options: argparse.ArgumentParser) -> None:
    """Measure one variant where the arguments name one, else all of them, side by side."""
    arguments = options.parse_args()
    if arguments.profile:
        _profile(benchmark, arguments)
    elif arguments.variant == OURS:
        _measure_ours(benchmark, arguments)
    elif arguments.variant:
        _measure_theirs(benchmark, arguments)
    else:
        _compare(benchmark, arguments)


def parser(description: str | None, examples: int) -> argparse.ArgumentParser:
    """The arguments that both have."""
    result = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--model", type=Path, default=Path("data/models/smollm2-135m-instruct"))
    result.add_argument("--problems", type=Path, default=Path("data/gsm8k/train.jsonl"))
    result.add_argument("--examples", type=int, default=examples, help="sequences in the step")
    result.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of compute")
    result.add_argument("--token-budget", type=int, default=2048, help="this library's longest packed row")
    result.add_argument("--microbatches", type=int, nargs="+", default=[1, 2, 4, 8, 16], help="TRL's sizes to try")
    result.add_argument("--rounds", type=int, default=3)
    result.add_argument("--profile", action="store_true", help="where this library's time goes, and nothing else")
    result.add_argument("--variant", help="measure this one, in this process")
    result.add_argument("--result", type=Path, help="where the measurement goes")
    return result


def some_problems(path: Path, count: int) -> list[Problem]:
    """A seeded draw, in random order."""
    return random.Random(0).sample(load_problems(path), count)


def load_model(arguments: argparse.Namespace) -> tuple[Any, Any]:
    """Model and tokenizer as TRL gets them."""
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32)
    return model, AutoTokenizer.from_pretrained(arguments.model)


def trainer_arguments(arguments: argparse.Namespace, microbatch: int, folder: str) -> dict[str, Any]:
    """What a TRL configuration needs for two steps of one microbatch size, and no more work than those."""
    return {
        "output_dir": folder,
        "use_cpu": True,
        "bf16": arguments.dtype == "bfloat16",
        "gradient_checkpointing": False,
        "per_device_train_batch_size": microbatch,
        "gradient_accumulation_steps": arguments.examples // microbatch,
        "max_steps": 2,
        "max_grad_norm": NO_CLIPPING,
        "learning_rate": 1e-6,
        "report_to": [],
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
    }


class SecondStep(TrainerCallback):
    """Times the second step of a Hugging Face trainer; compares the gradient of the first."""

    def __init__(self, expected: Path) -> None:
        self.expected = expected
        self.measurement: Measurement = {}
        self.difference = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self._stopwatch = Stopwatch().start()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 0:
            self.difference = _difference(kwargs["model"], self.expected)

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.measurement = self._stopwatch.read()


def _difference(model: torch.nn.Module, expected: Path) -> float:
    """Of all gradients as one vector."""
    references: dict[str, Tensor] = torch.load(expected, mmap=True)
    gradients = {name: weight.grad for name, weight in model.named_parameters()}
    assert gradients.keys() == references.keys()
    found = torch.cat([_flat(gradients[name]) for name in references])
    return relative_difference(found, torch.cat([_flat(gradient) for gradient in references.values()]))


def _flat(gradient: Tensor | None) -> Tensor:
    assert gradient is not None
    return gradient.flatten()


def _our_learner(arguments: argparse.Namespace) -> Learner:
    config = OptimizerConfig(learning_rate=1e-6, max_grad_norm=NO_CLIPPING, token_budget=arguments.token_budget)
    policy = Policy.load(arguments.model, dtype=arguments.dtype)
    return Learner(policy, config, Ranks(), Path(tempfile.gettempdir()))


def _measure_ours(benchmark: StepBenchmark, arguments: argparse.Namespace) -> None:
    learner = _our_learner(arguments)
    step = benchmark.ours(arguments, learner, learner.policy.tokenizer)

    def keep_gradients(*_: Any) -> None:
        kept = {name: weight.grad for name, weight in learner.policy.model.named_parameters()}
        torch.save(kept, _gradient_file(arguments.result))

    hook: Any = None
    if not _gradient_file(arguments.result).exists():
        hook = learner.optimizer.register_step_pre_hook(keep_gradients)
    step()
    if hook:
        hook.remove()
    stopwatch = Stopwatch().start()
    tokens = step()
    arguments.result.write_text(json.dumps({**stopwatch.read(), "tokens": tokens}))


def _measure_theirs(benchmark: StepBenchmark, arguments: argparse.Namespace) -> None:
    second_step = SecondStep(_gradient_file(arguments.result))
    with tempfile.TemporaryDirectory() as folder:
        benchmark.theirs(arguments, arguments.variant, second_step, folder).train()
    arguments.result.write_text(json.dumps({**second_step.measurement, "difference": second_step.difference}))


def _gradient_file(result: Path) -> Path:
    return result.with_name("gradients.pt")


def _compare(benchmark: StepBenchmark, arguments: argparse.Namespace) -> None:
    """All variants once, then this library and TRL's best in turns."""
    print(machine())
    options = command_line(arguments, but=("microbatches", "rounds", "profile", "variant", "result"))
    names = benchmark.variants(arguments)
    with tempfile.TemporaryDirectory() as folder:
        rounds = take_turns(benchmark.script, [OURS, *names], 1, options, Path(folder))
        best = min(names, key=lambda name: times(rounds[name]).least)
        for name, further in take_turns(
            benchmark.script, [OURS, best], arguments.rounds - 1, options, Path(folder)
        ).items():
            rounds[name] += further
    _print_table(rounds, best, arguments.dtype)


def _print_table(rounds: dict[str, list[Measurement]], best: str, dtype: str) -> None:
    print(f"one optimiser step, {dtype}; this library ran {rounds[OURS][0]['tokens']} tokens")
    print(f"{'variant':32} {'min s':>8} {'median':>8} {'cpu s':>8} {'gradient differs by':>20}")
    for name, measured in rounds.items():
        spent = times(measured)
        difference = f"{measured[0]['difference']:.1e}" if "difference" in measured[0] else ""
        print(f"{name:32} {spent.least:8.2f} {spent.median:8.2f} {spent.cpu:8.2f} {difference:>20}")
    ours, theirs = times(rounds[OURS]), times(rounds[best])
    print(
        f"{best} / {OURS}: time {theirs.least / ours.least:.2f} by minima, {theirs.median / ours.median:.2f} by "
        f"medians, {theirs.cpu / ours.cpu:.2f} of the processor"
    )
    if dtype == "float32" and rounds[best][0]["difference"] > GRADIENT_BAR:
        raise SystemExit(f"error: the gradients differ by more than {GRADIENT_BAR}: these are not the same step")


def _profile(benchmark: StepBenchmark, arguments: argparse.Namespace) -> None:
    learner = _our_learner(arguments)
    step = benchmark.ours(arguments, learner, learner.policy.tokenizer)
    step()
    stopwatch = Stopwatch().start()
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        step()
        elapsed = stopwatch.read()["seconds"]
    averages = recorded.key_averages()
    print(averages.table(sort_by="self_cpu_time_total", row_limit=25, max_name_column_width=60))
    print_shares({event.key: event.self_cpu_time_total / 1e6 for event in averages}, elapsed)


def print_shares(by_operator: dict[str, float], elapsed: float) -> None:
    """Matrix products, attention and the rest, as shares of the step."""
    shares: dict[str, float] = {}
    for name, spent in by_operator.items():
        shares[kind_of(name)] = shares.get(kind_of(name), 0.0) + spent
    for kind, spent in shares.items():
        print(f"{kind:36} {spent:8.2f} s {spent / elapsed:7.1%}")
    rest = elapsed - sum(shares.values())
    print(f"{'outside of operators':36} {rest:8.2f} s {rest / elapsed:7.1%}")


def kind_of(operator: str) -> str:
    """What an operator of torch's profiler counts as."""
    name = operator.removeprefix("aten::")
    if name in MATRIX_PRODUCTS:
        return "matrix products"
    if "attention" in name:
        return "attention"
    return "optimiser" if "adam" in name.lower() else "elementwise, copies and the rest"
