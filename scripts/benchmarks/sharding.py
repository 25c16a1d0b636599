"""How a policy lies on several ranks, measured: shards (FSDP2) against replicas, in seconds and memory a rank.

    uv run python scripts/benchmarks/sharding.py                  # two CPU ranks, a model of 135 M with random weights
    uv run python scripts/benchmarks/sharding.py --ranks 4 --layers 28 --hidden 1536 --intermediate 8960 --heads 12 \\
        --kv-heads 2 --vocab 151936 --response-tokens 512              # on a node of four GPUs: Qwen2.5-1.5B's shape

Each variant is a run of its own ranks, started after one another in each round, with the same examples. Memory is the
process's on a CPU (its largest resident set, the libraries' own share included), the allocator's peak on a GPU.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from transformers import AutoModelForCausalLM, Qwen2Config

from cs336_alignment.ranks import Ranks, leave_peers
from cs336_alignment.training.distributed import Sharding
from cs336_alignment.training.learner import Learner, OptimizerConfig
from cs336_alignment.training.packing import PACKED_ATTENTION, TokenExample
from cs336_alignment.training.policy import Policy

VARIANTS: tuple[Sharding, ...] = ("fsdp2", "replicas")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2, help="processes, each with a GPU where there are any")
    parser.add_argument("--rounds", type=int, default=3, help="how often each variant is started")
    parser.add_argument("--steps", type=int, default=3, help="steps a start, after one that is not counted")
    parser.add_argument("--sequences", type=int, default=16, help="examples of a step, over all ranks")
    parser.add_argument("--response-tokens", type=int, default=128, help="of each example")
    parser.add_argument("--token-budget", type=int, default=1024, help="of a microbatch")
    for name, default in (("layers", 30), ("hidden", 576), ("intermediate", 1536), ("heads", 9), ("kv-heads", 3)):
        parser.add_argument(f"--{name}", type=int, default=default, help="of the model")
    parser.add_argument("--vocab", type=int, default=49152, help="of the model")
    parser.add_argument("--bfloat16", action="store_true", help="compute in bfloat16, as on GPUs; slow on most CPUs")
    parser.add_argument("--variant", choices=VARIANTS, help=argparse.SUPPRESS)
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(options: argparse.Namespace) -> None:
    if options.variant:
        measure(options)
        return
    figures: dict[str, list[dict[str, float]]] = {variant: [] for variant in VARIANTS}
    for _ in range(options.rounds):
        for variant in VARIANTS:
            figures[variant].append(start(options, variant))
    for variant, runs in figures.items():
        seconds = median(run["seconds"] for run in runs)
        print(f"{variant:>9}: {seconds:.2f} s a step, {max(run['gib'] for run in runs):.2f} GiB a rank at most")
    ratios = [one["seconds"] / other["seconds"] for one, other in zip(*figures.values(), strict=True)]
    print(f"fsdp2 takes {median(ratios):.2f} times as long as replicas ({min(ratios):.2f} to {max(ratios):.2f})")


def start(options: argparse.Namespace, variant: Sharding) -> dict[str, float]:
    """One run of all ranks, and what the main rank found."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={options.ranks}"]
        given = [*sys.argv, "--variant", variant, "--result", str(result)]
        subprocess.run([*launcher, *given], check=True)
        return json.loads(result.read_text())


def measure(options: argparse.Namespace) -> None:
    """The body of a rank."""
    ranks = Ranks()
    config = Qwen2Config(
        num_hidden_layers=options.layers,
        hidden_size=options.hidden,
        intermediate_size=options.intermediate,
        num_attention_heads=options.heads,
        num_key_value_heads=options.kv_heads,
        vocab_size=options.vocab,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)  # the same weights on every rank
    model: Any = AutoModelForCausalLM.from_config(config, attn_implementation=PACKED_ATTENTION, dtype=torch.float32)
    policy = Policy(model.eval(), range(options.vocab), compute_dtype=torch.bfloat16 if options.bfloat16 else None)
    optimizer = OptimizerConfig(learning_rate=1e-6, token_budget=options.token_budget)
    learner = Learner(policy, optimizer, ranks, Path(), options.variant)
    draw = torch.Generator().manual_seed(1)
    examples = [
        TokenExample((row + 1, 2, 3), tuple(ids))
        for row, ids in enumerate(
            torch.randint(options.vocab, (options.sequences, options.response_tokens), generator=draw).tolist()
        )
    ]
    weights = torch.ones(options.sequences)
    seconds = []
    for _ in range(options.steps + 1):
        ranks.wait()
        began = perf_counter()
        learner.step(examples, weights, lambda _: lambda log_probs, at: -log_probs)
        ranks.wait()
        seconds.append(perf_counter() - began)
    on_gpu = ranks.device.type == "cuda"
    peak = torch.cuda.max_memory_allocated() if on_gpu else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    gib = max(ranks.gather([peak])) / 2**30
    if ranks.is_main:
        options.result.write_text(json.dumps({"seconds": median(seconds[1:]), "gib": gib}))
    leave_peers()


if __name__ == "__main__":
    main(parse())
