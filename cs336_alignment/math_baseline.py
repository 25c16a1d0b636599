"""Zero-shot evaluation of a model on word problems (handout section 3, problem math_baseline).

    uv run python -m cs336_alignment.math_baseline
    uv run python -m cs336_alignment.math_baseline --model Qwen/Qwen2.5-Math-1.5B --data data/gsm8k/test.jsonl
    uv run python -m cs336_alignment.math_baseline --help

Without options it takes GSM8K's test split and the model that CS336_MODEL names where they are there, otherwise the
embedded set and policy. Deviates from the handout in the data: GSM8K in place of MATH.
"""

import hashlib
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from secrets import token_hex
from typing import Literal

from rich.console import Console
from rich.markdown import Markdown
from transformers import AutoConfig, AutoTokenizer

from cs336_alignment import environment, prompts
from cs336_alignment.command_line import FAILED, UNUSABLE, parse_options
from cs336_alignment.evaluation import (
    GRADERS,
    METRICS,
    EvaluationProtocol,
    check_prompts,
    evaluate,
    generation_seconds,
    summarize,
)
from cs336_alignment.evaluation_report import summary_table, write_report
from cs336_alignment.ranks import Ranks, failing_together, leave_peers, several_ranks
from cs336_alignment.rollout.engine import EngineError, RolloutEngine, Sampling
from cs336_alignment.rollout.selection import EngineName, EngineNotInstalledError, open_engine
from cs336_alignment.rollout.transformers_engine import Dtype, TransformersEngine
from cs336_alignment.run_folder import (
    UsageError,
    check_same_run,
    forget_failed_start,
    lock_folder,
    record_session,
    write_json,
)
from cs336_alignment.tasks.gsm8k import load_problems
from cs336_alignment.tasks.problem import Problem

MODEL_VARIABLE = "CS336_MODEL"
GSM8K_TEST = Path("gsm8k/test.jsonl")
EMBEDDED_TEST = Path("arithmetic/test.jsonl")
EMBEDDED_POLICY = Path("policy")


@dataclass(frozen=True)
class BaselineConfig:
    """Evaluate a model on word problems, zero-shot."""

    model: str | None = None
    """Hugging Face directory or hub name. Default: the environment variable CS336_MODEL, else the embedded policy."""
    data: Path | None = None
    """JSON lines in GSM8K's schema. Default: data/gsm8k/test.jsonl, else the embedded test set."""
    prompt: Literal["r1_zero", "question_only"] = "r1_zero"
    """Prompt template; it also decides the answer format that is graded."""
    temperature: float = 1.0
    """Sampling temperature; 0 is greedy."""
    top_p: float = 1.0
    """Sample from the smallest set of tokens with at least this probability."""
    max_tokens: int = 1024
    """Longest response."""
    min_tokens: int = 0
    """Shortest response."""
    stop: tuple[str, ...] = ("</answer>",)
    """Strings that end a response; they stay in it."""
    seed: int = 0
    """Seed of the sampling."""
    limit: int | None = None
    """Only the first so many problems."""
    engine: EngineName = "auto"
    """Rollout engine; auto is vLLM where it is installed."""
    tensor_parallel_size: int = 1
    """GPUs that share one copy of the model (vLLM). Under a launcher, consecutive ranks do."""
    dtype: Dtype = "auto"
    """Precision of weights and computation; auto is bfloat16 on a GPU and float32 on a CPU."""
    max_batch_size: int | None = None
    """Sequences that run at once; default: the engine's own."""
    chunk_size: int | None = None
    """Problems generated, graded and stored at once: what an interruption loses. Default: 256 (vLLM) or 64."""
    output: Path | None = None
    """Run folder. Default: a new one under runs/."""
    resume: bool = False
    """Continue the interrupted run in --output."""


def main() -> None:
    try:
        config = parse_options(BaselineConfig, __doc__)
        with failing_together():
            environment.check_cuda_driver()
            environment.use_device_indices()
            run(config, Console(stderr=True))
            leave_peers()
    except (UsageError, EngineError, EngineNotInstalledError, environment.MachineError) as error:
        Console(stderr=True).print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(FAILED if isinstance(error, EngineError) else UNUSABLE)


def run(config: BaselineConfig, console: Console) -> Path:
    """Evaluate as `config` says, and return the run folder.

    Raises:
        UsageError, EngineNotInstalledError: with a message for the user.
    """
    for option in ("limit", "chunk_size", "max_batch_size", "tensor_parallel_size"):
        value = getattr(config, option)
        if value is not None and value < 1:
            raise UsageError(f"--{option.replace('_', '-')} must be at least 1, got {value}")
    # One process alone starts the others of its engine itself.
    ranks = Ranks(config.tensor_parallel_size if several_ranks() else 1)
    console.quiet = not ranks.is_main
    model, data, note = choose_model_and_data(config.model, config.data, os.environ, data_folder())
    if note:
        console.print(note, markup=False, highlight=False, soft_wrap=True)
    problems = _load(data, config.limit)
    template = prompts.load_template(config.prompt)
    _check_prompts(model, data, problems, template)
    _sampling(config)
    name = f"math_baseline-{datetime.now():%Y%m%d-%H%M%S}-{token_hex(2)}"  # jobs may start in the same second
    run_folder = Path("runs") / ranks.gather([name])[0] if config.output is None else config.output
    with ExitStack() as stack:
        if ranks.is_main:  # the others might see what it has begun
            stack.enter_context(lock_folder(run_folder))
            _check_output(run_folder, config.resume)
        _evaluate(config, model, data, problems, template, run_folder, ranks, console)
    return run_folder


def _evaluate(
    config: BaselineConfig,
    model: str,
    data: Path,
    problems: Sequence[Problem],
    template: str,
    run_folder: Path,
    ranks: Ranks,
    console: Console,
) -> None:
    """From an engine to a report."""
    sampling = _sampling(config)
    with _open_engine(config, model, progress=console.is_terminal and ranks.is_main) as engine:
        # vLLM has so many sequences at work at once; the other engine is slow enough to store its examples more often.
        share = 64 if isinstance(engine, TransformersEngine) else 256
        chunk_size = config.chunk_size or share * ranks.count // ranks.tensor_parallel_size
        protocol = EvaluationProtocol(
            model=model,
            split=str(data),
            split_sha256=hashlib.sha256(data.read_bytes()).hexdigest(),
            n_problems=len(problems),
            prompt=config.prompt,
            prompt_sha256=prompts.sha256(template),
            sampling=sampling,
            chunk_size=chunk_size,
            engine=engine.description,
        )
        if ranks.is_main:
            _record(run_folder, config, protocol)
        about = f"{len(problems):,} problems from {data} to {model}; run folder {run_folder}"
        console.print(about, markup=False, highlight=False, soft_wrap=True)
        grader = GRADERS[config.prompt]
        try:
            examples = evaluate(engine, grader, problems, template, sampling, run_folder, chunk_size, ranks)
        except ValueError as error:
            raise UsageError(str(error)) from error
        except KeyboardInterrupt:
            again = f"\ninterrupted; the same command with --output {run_folder} --resume continues"
            console.print(again, markup=False, highlight=False, soft_wrap=True)
            sys.exit(130)
    if ranks.is_main:
        summary = summarize(examples, generation_seconds(run_folder))
        write_json(run_folder / "summary.json", summary)
        report = write_report(run_folder, protocol, examples, summary)
        Console().print(Markdown(summary_table(summary)))
        console.print(f"report: {report}", markup=False, highlight=False, soft_wrap=True)


def choose_model_and_data(
    model: str | None, data: Path | None, variables: Mapping[str, str], folder: Path
) -> tuple[str, Path, str]:
    """What to evaluate on what, and a note for the user where the embedded pair stands in.

    The embedded policy and set stand in only where neither a model nor data is named or prepared: half of the real
    thing is an error, never a silent mixture.

    Args:
        model, data: the options.
        variables: the environment.
        folder: the project's data folder.

    Raises:
        UsageError: what is missing, and how to get it.
    """
    named = model or variables.get(MODEL_VARIABLE) or None
    gsm8k = folder / GSM8K_TEST
    if named is None and data is None and not gsm8k.exists():
        for path in (folder / EMBEDDED_POLICY, folder / EMBEDDED_TEST):
            if not path.exists():
                raise UsageError(f"there is no {path}: start from a checkout, or give --model and --data")
        note = (
            "Using the embedded arithmetic set and the small policy that comes with it.\n"
            f"For the real ones: `uv run python scripts/prepare_gsm8k.py` and {MODEL_VARIABLE}=Qwen/Qwen2.5-Math-1.5B"
        )
        return str(folder / EMBEDDED_POLICY), folder / EMBEDDED_TEST, note
    if named is None:
        raise UsageError(
            f"there is data ({data or gsm8k}) but no model: give --model, or set {MODEL_VARIABLE} to a Hugging Face "
            "directory or hub name"
        )
    source = "--model" if model else MODEL_VARIABLE
    _check_model(source, named)
    data = data or gsm8k
    if not data.exists():
        raise UsageError(
            f"{source} is {named!r}, but there is no {data}: run `uv run python scripts/prepare_gsm8k.py`, "
            "or give --data"
        )
    return named, data, ""


def data_folder() -> Path:
    """The checkout's data folder, as seen from here; ./data where the package is installed as a wheel."""
    checkout = Path(__file__).resolve().parents[1] / "data"
    if not checkout.exists():
        return Path("data")
    return checkout.relative_to(Path.cwd()) if checkout.is_relative_to(Path.cwd()) else checkout


def _check_model(source: str, model: str) -> None:
    """Read the model's config, which is quick, before anything slow starts."""
    try:
        AutoConfig.from_pretrained(model)
    except (OSError, ValueError) as error:
        found = "a folder without a usable model" if Path(model).exists() else "no such directory here, nor on the hub"
        raise UsageError(f"{source} is {model!r}: {found} ({str(error).splitlines()[0]})") from error


def _open_engine(config: BaselineConfig, model: str, progress: bool) -> RolloutEngine:
    try:
        return open_engine(
            config.engine,
            model,
            dtype=config.dtype,
            tensor_parallel_size=config.tensor_parallel_size,
            max_batch_size=config.max_batch_size,
            progress=progress,
        )
    except OSError as error:  # a folder with a config, but without weights or tokenizer
        raise UsageError(f"cannot load {model!r}: {str(error).splitlines()[0]}") from error


def _load(data: Path, limit: int | None) -> list[Problem]:
    try:
        problems = load_problems(data)[:limit]
    except (OSError, ValueError) as error:
        raise UsageError(str(error)) from error
    if not problems:
        raise UsageError(f"{data} holds no problems")
    return problems


def _check_prompts(model: str, data: Path, problems: Sequence[Problem], template: str) -> None:
    try:
        tokenizer = AutoTokenizer.from_pretrained(model)
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot load the tokenizer of {model!r}: {str(error).splitlines()[0]}") from error
    check_prompts(data, problems, template, tokenizer, AutoConfig.from_pretrained(model).max_position_embeddings)


def _sampling(config: BaselineConfig) -> Sampling:
    try:
        return Sampling(
            temperature=config.temperature,
            top_p=config.top_p,
            max_tokens=config.max_tokens,
            min_tokens=config.min_tokens,
            stop=config.stop,
            seed=config.seed,
        )
    except ValueError as error:
        raise UsageError(str(error)) from error


def _check_output(run_folder: Path, resume: bool) -> None:
    if not resume:
        forget_failed_start(run_folder, METRICS)
    used = (run_folder / "run.json").exists()
    if used and not resume:
        raise UsageError(f"{run_folder} already holds a run: continue it with --resume, or name another --output")
    if resume and not used:
        raise UsageError(f"nothing to resume in {run_folder}: --resume continues the run that --output names")


def _record(run_folder: Path, config: BaselineConfig, protocol: EvaluationProtocol) -> None:
    """Write run.json; a resumed run must have the protocol that it was started with, and adds its session."""
    check_same_run(run_folder, "protocol", asdict(protocol))
    record_session(run_folder, asdict(config), asdict(protocol), environment.describe())


if __name__ == "__main__":
    main()
