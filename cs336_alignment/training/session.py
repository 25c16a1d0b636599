"""What the three algorithms share around their loops: options, and a session that opens, syncs, evaluates and saves.

A session is one process's part of a run. Its record and checkpoints outlive it; `resume="auto"` goes on from them.
"""

import copy
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from secrets import token_hex
from time import monotonic
from types import TracebackType
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer

from cs336_alignment import prompts
from cs336_alignment.evaluation import GRADERS, answer, check_prompts, summarize
from cs336_alignment.ranks import Ranks, tell_peers
from cs336_alignment.rollout.engine import Completion, RolloutEngine, Sampling, derive_seed
from cs336_alignment.rollout.proof import Proof, prove_policy
from cs336_alignment.rollout.selection import EngineName, open_engine
from cs336_alignment.rollout.transformers_engine import Dtype
from cs336_alignment.run_folder import UsageError, check_same_run, forget_failed_start, lock_folder
from cs336_alignment.tasks.gsm8k import load_problems
from cs336_alignment.tasks.problem import Problem
from cs336_alignment.training.checkpoint import Checkpoints, Progress
from cs336_alignment.training.distributed import Sharding, spread
from cs336_alignment.training.interruption import Interruption
from cs336_alignment.training.learner import Learner, OptimizerConfig
from cs336_alignment.training.packing import TokenExample
from cs336_alignment.training.policy import Policy
from cs336_alignment.training.rollouts import Rollout, sample_rollouts
from cs336_alignment.training.run_record import METRICS, RunRecord, WandbMode, settings_of
from cs336_alignment.training.sampler_guard import SamplerGuard

PROOF_PROMPTS = 4
PROMPT_TOKENS = 256
"""What a prompt is taken to have before the data are read: the r1_zero preamble and a question."""
ENGINE_SHARE = 0.3
"""Of a GPU's memory for a vLLM engine, where nobody asked memory_check.py."""
EVALUATION, PROOF, ROLLOUTS, QUESTIONS = range(4)
"""What a seed is for: the first step of its derivation from the run's seed."""


@dataclass(frozen=True)
class RunConfig:
    """Options that every training command has."""

    model: str = "Qwen/Qwen2.5-Math-1.5B"
    """Hugging Face directory or hub name to start from."""
    train_data: Path = Path("data/gsm8k/train_full.jsonl")
    """Training problems, JSON lines in GSM8K's schema."""
    eval_data: Path = Path("data/gsm8k/dev.jsonl")
    """Problems for the evaluations during training: a development split, never the test split."""
    output: Path | None = None
    """Run folder. Default: a new one under runs/."""
    resume: Literal["never", "auto"] = "never"
    """auto goes on from the latest checkpoint in --output, or starts where there is none."""
    seed: int = 0
    """Seed of everything that is drawn: questions, rollouts, evaluations, orders."""
    prompt: Literal["r1_zero", "question_only"] = "r1_zero"
    """Prompt template; it also decides the answer format that is graded."""
    engine: EngineName = "auto"
    """Rollout engine; auto is vLLM where it is installed."""
    engine_batch_size: int | None = None
    """Sequences that the engine runs at once; default: the engine's own."""
    gpu_memory_utilization: float | None = None
    """Share of each GPU's memory for a vLLM engine. Default: enough for the rollout batch, as far as it fits beside the
    trainer."""
    dtype: Dtype = "auto"
    """Precision of the computation; auto is bfloat16 on a GPU, float32 on a CPU. Weights are float32 in either case."""
    activation_checkpointing: bool | None = None
    """Keep only each layer's input for the backward pass: less memory, a third more compute. Default: only where
    nothing else fits into the GPU's memory."""
    sharding: Sharding = "fsdp2"
    """With several ranks: a part of the policy, its gradients and moments on each (fsdp2), or all of it (replicas)."""
    tensor_parallel_size: Literal[1, 2, 4] = 1
    """Consecutive ranks that share one rollout engine (vLLM), for models too large for one GPU. The number of ranks
    must be a multiple of it."""
    temperature: float = 1.0
    """Sampling temperature of the rollouts, and of the log-probs that are trained on."""
    max_tokens: int = 1024
    """Longest response, in tokens."""
    eval_every: int = 5
    """Steps between evaluations; one before the first step and one after the last are made in any case."""
    eval_limit: int = 1024
    """At most so many evaluation problems, the first of the file."""
    eval_temperature: float = 1.0
    """Sampling temperature of the evaluations; 0 is greedy."""
    checkpoint_every: int = 10
    """Steps between checkpoints; one is written at the end, and on a signal or time limit, in any case. (Expert
    iteration repeats a round that a signal cuts short.)"""
    keep_checkpoints: int = 2
    """How many of the latest checkpoints to keep."""
    time_limit_minutes: float | None = None
    """Write a checkpoint and end so long after the start: set it below the job's walltime."""
    wandb: WandbMode = "offline"
    """wandb's mode. Offline files lie in the run folder."""
    threads: int | None = None
    """Torch's CPU threads; default: torch's own choice."""
    dry_run: bool = False
    """Print the predicted memory of each GPU, and end."""
    gpu_memory_gib: float | None = None
    """What each GPU has, for the prediction; default: what it reports, and 39.4 where there is none."""

    def __post_init__(self) -> None:
        if self.resume == "auto" and self.output is None:
            raise ValueError("resume auto needs output: the folder of the run that is to go on")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, got {self.seed}")
        if self.eval_temperature < 0:
            raise ValueError(f"eval_temperature must not be negative, got {self.eval_temperature}")
        for name in ("eval_every", "eval_limit", "checkpoint_every", "keep_checkpoints", "max_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("threads", "engine_batch_size"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.gpu_memory_utilization is not None and not 0 < self.gpu_memory_utilization < 1:
            raise ValueError(f"gpu_memory_utilization must be between 0 and 1, got {self.gpu_memory_utilization}")
        for name in ("gpu_memory_gib", "time_limit_minutes"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if self.temperature <= 0:
            raise ValueError(f"temperature must be positive, got {self.temperature}: rollouts explore")

    @property
    def longest_rollout(self) -> int:
        """Tokens of a prompt and the longest response."""
        return PROMPT_TOKENS + self.max_tokens


# What a resumed run may change: where, for how long and in what pieces it runs, not what it computes. With other pieces
# floats are added in another order, and the last bits differ.
UNMATCHED = (
    *("output", "resume", "time_limit_minutes", "wandb", "keep_checkpoints", "threads", "gpu_memory_utilization"),
    *("dry_run", "gpu_memory_gib", "engine_batch_size", "activation_checkpointing", "sharding", "tensor_parallel_size"),
    *("token_budget", "gradient_accumulation_steps"),
)


class Session:
    """A policy in training with the engine that samples from it. Use it as a context manager."""

    def __init__(
        self,
        config: Any,
        run: RunConfig,
        optimizer: OptimizerConfig,
        eval_problems: Sequence[Problem],
        *,
        steps: int,
        traces: Path | None = None,
        keep_reference: bool = False,
        ranks: Ranks | None = None,
        policy: Policy | None = None,
        engine: Callable[[], RolloutEngine] | None = None,
    ) -> None:
        """Load the policy, resume it where that was asked for, open the engine, and begin the record.

        The run folder, the options and the data are compared with an earlier run's before a model is loaded.

        Args:
            config: all options of the command, for the record.
            run, optimizer: its parts that are used here.
            eval_problems: what `evaluate` asks.
            steps: the algorithm's, for the progress bar.
            traces: what is trained on in place of the training problems.
            keep_reference: keep a copy of the initial policy, for a KL term.
            ranks, policy, engine: to be used in place of what the options name; tests pass fakes.

        Raises:
            UsageError: the run folder holds a run already, and resume is "never", or its options or data were others.
        """
        began = monotonic()
        if run.threads is not None:
            torch.set_num_threads(run.threads)
        self.ranks = ranks or Ranks(run.tensor_parallel_size)
        self.run = run
        self.template = prompts.load_template(run.prompt)
        self.grader = GRADERS[run.prompt]
        self.folder = self._choose_folder()
        self._steps = steps
        self.eval_problems = eval_problems[: run.eval_limit]
        self._checkpoints = Checkpoints(self.folder, run.keep_checkpoints)
        settings = settings_of(config, (run.eval_data, traces or run.train_data))
        with ExitStack() as stack:
            if self.ranks.is_main:  # the others might see what it has begun
                stack.enter_context(lock_folder(self.folder))
                self._check_folder(settings)
            self.ranks.wait()
            latest = self._checkpoints.latest()
            _seed_everything(run.seed)
            if policy is None:
                policy = _load_policy(run)
            # Before a checkpoint is loaded: the reference is the policy that the run began with.
            self._reference = copy.deepcopy(policy) if keep_reference else None
            if self._reference is not None:
                layers, dtype = self._reference.layers(), policy.compute_dtype
                spread(self._reference, layers, self.ranks, run.sharding, dtype)
            self.learner = Learner(policy, optimizer, self.ranks, self.folder, run.sharding)
            # The engine first: vLLM's sets the seeds of this process.
            self.engine = stack.enter_context(engine() if engine else self._open_engine())
            _seed_everything(run.seed)
            self.progress = Progress() if latest is None else self._checkpoints.load(latest, self.learner)
            self._saved_step = self.progress.step
            self.record = stack.enter_context(
                RunRecord(
                    self.folder,
                    settings,
                    self._protocol(),
                    self.ranks,
                    steps=steps,
                    job_type=type(config).__name__,
                    start_step=None if latest is None else self.progress.step,
                    wandb_mode=run.wandb,
                    wandb_id=self.progress.wandb_id,
                    in_pieces={
                        "token_budget": optimizer.token_budget,
                        "gradient_accumulation_steps": optimizer.gradient_accumulation_steps,
                        "activation_checkpointing": run.activation_checkpointing,
                        "gpu_memory_utilization": run.gpu_memory_utilization,
                    },
                )
            )
            self.progress.wandb_id = self.record.wandb_id
            self._proof: Proof | None = None
            self._proved_version = -1
            self._interruption = Interruption(self.ranks, began, run.time_limit_minutes)
            self._stack = stack.pop_all()

    def __enter__(self) -> "Session":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None and not isinstance(error, SystemExit):
            tell_peers(error)
        self._interruption.restore()
        self._stack.__exit__(kind, error, traceback)  # the engine has to know whether this is an error's way out

    @property
    def policy(self) -> Policy:
        return self.learner.policy

    def sync_engine(self, problems: Sequence[Problem]) -> Proof:
        """Give the engine the policy as it is now, and have it prove that it took it, on the first few problems. An
        engine that has it already is woken, and its proof stands."""
        version = self.learner.steps_taken
        if self._proof is not None and self._proved_version == version:
            self.engine.wake()
            return self._proof
        dtype = getattr(torch, self.engine.dtype)
        self.engine.load_policy(self.policy.weights(dtype), version)
        self._proof = prove_policy(
            self.engine,
            self.policy.weight_sums(dtype),
            version,
            [prompts.fill(self.template, question=problem.question) for problem in problems[:PROOF_PROMPTS]],
            self._score,
            derive_seed(self.run.seed, PROOF, version),
            self.run.temperature,
            self.ranks.any_of,
        )
        self._proved_version = version
        return self._proof

    def sample(self, problems: Sequence[Problem], sampling: Sampling) -> list[Rollout]:
        """Graded rollouts from the engine as it was last synced."""
        return sample_rollouts(
            self.engine, self.policy.tokenizer, problems, self.template, self.grader, sampling, self.ranks
        )

    def sampler_guard(self, min_tokens: int) -> SamplerGuard:
        """What compares rollouts, of at least `min_tokens` tokens, with the policy that is to learn from them."""
        return SamplerGuard(self.engine.dtype, min_tokens, self.folder, self.ranks, self.record.warn)

    def reference_log_probs(self, examples: Sequence[TokenExample], weights: Tensor) -> list[Tensor]:
        """Log-probs of each example's response tokens under the initial policy; of those with weight 0 none."""
        assert self._reference is not None, "the session was opened without keep_reference"
        return self.learner.score(examples, weights, self._reference)

    def evaluate(self, step: int) -> dict[str, Any]:
        """Accuracy of the policy on the evaluation problems, logged as step `step` with the engine's last proof."""
        assert self._proof is not None, "sync the engine before an evaluation"
        sampling = self._eval_sampling(step)
        graded, seconds = answer(self.engine, self.grader, self.eval_problems, self.template, sampling, self.ranks)
        summary = {**summarize(graded, seconds), **asdict(self._proof)}
        self.progress.best_accuracy = max(summary["accuracy"], self.progress.best_accuracy or 0.0)
        summary["best_accuracy"] = self.progress.best_accuracy
        timing = {name: summary.pop(name) for name in list(summary) if "second" in name}
        self.record.log("eval", step, summary, timing)
        self.record.completions(f"eval_step_{step}", graded)
        return summary

    def evaluation_due(self, step: int) -> bool:
        return step % self.run.eval_every == 0 or step == self._steps

    def cut_short(self, step: int) -> bool:
        """Within a long step: true where a signal came and the step alone would be lost. A resumed run repeats it."""
        reason = self._interruption.signalled()
        if reason is None or self._saved_step < step - 1:
            return False
        self._say_stopped(f"within step {step}, which will be repeated ({reason})")
        return True

    def end_step(self, step: int) -> bool:
        """Note that a step is done and save where that is due; true where the run should stop before its end."""
        self.progress.step = step
        self.progress.optimizer_steps = self.learner.steps_taken
        reason = self._interruption.reason()
        if reason or step % self.run.checkpoint_every == 0 or step == self._steps:
            self.engine.sleep()  # a sharded policy is put together to be saved
            self._checkpoints.save(self.learner, self.progress)
            self._saved_step = step
        if reason and step < self._steps:
            self._say_stopped(f"after step {step} ({reason})")
            return True
        return False

    def _say_stopped(self, where: str) -> None:
        self.record.warn(f"stopped {where}; go on with --output {self.folder} --resume auto")

    def _score(self, asked: Sequence[str], completions: Sequence[Completion], scale: float) -> list[Tensor]:
        """The trainer's log-probs of what this rank's engine said, its logits multiplied by `scale`. Ranks score
        together; those of one engine have heard the same, and the first of them brings it."""
        tokenizer = self.policy.tokenizer
        examples = [
            TokenExample(tuple(tokenizer(prompt)["input_ids"]), completion.token_ids)
            for prompt, completion in zip(asked, completions, strict=True)
        ]
        sizes = self.ranks.gather([0 if self.ranks.place_in_group else len(examples)])
        start = sum(sizes[: self.ranks.index - self.ranks.place_in_group])
        temperature = self.policy.temperature
        self.policy.temperature = temperature / scale
        try:
            scores = self.learner.score(self.ranks.gather([] if self.ranks.place_in_group else examples))
        finally:
            self.policy.temperature = temperature
        return scores[start : start + len(examples)]

    def _protocol(self) -> dict[str, Any]:
        """What the figures of the evaluations depend on, beside the config and the data."""
        return {
            "prompt_sha256": prompts.sha256(self.template),
            "eval_problems": len(self.eval_problems),
            "eval_sampling": asdict(self._eval_sampling(0)),
            "engine": self.engine.description,
        }

    def _eval_sampling(self, step: int) -> Sampling:
        return Sampling(
            temperature=self.run.eval_temperature,
            max_tokens=self.run.max_tokens,
            seed=derive_seed(self.run.seed, EVALUATION, step),
        )

    def _check_folder(self, settings: dict[str, Any]) -> None:
        """What the folder holds can be gone on with, or is nothing."""
        latest = self._checkpoints.latest()
        if latest is None:
            forget_failed_start(self.folder, METRICS)
        if self.run.resume == "never" and (latest or (self.folder / "run.json").exists()):
            raise UsageError(f"{self.folder} already holds a run: go on with --resume auto, or name another --output")
        check_same_run(self.folder, "config", settings, UNMATCHED)

    def _choose_folder(self) -> Path:
        if self.run.output is not None:
            return self.run.output
        name = f"{datetime.now():%Y%m%d-%H%M%S}-{token_hex(2)}"  # jobs may start in the same second
        return Path("runs") / self.ranks.gather([name])[0]

    def _open_engine(self) -> RolloutEngine:
        return open_engine(
            self.run.engine,
            self.run.model,
            dtype=self.run.dtype,
            max_batch_size=self.run.engine_batch_size,
            tensor_parallel_size=self.run.tensor_parallel_size,
            gpu_memory_utilization=self.run.gpu_memory_utilization or ENGINE_SHARE,
        )


def problems_from(option: str, path: Path) -> list[Problem]:
    """The problems of a file.

    Raises:
        UsageError: it is not there, holds none, or has a malformed line; the message says what to do.
    """
    if not path.exists():
        raise UsageError(f"--{option}: there is no {path}; for GSM8K run `uv run python scripts/prepare_gsm8k.py`")
    try:
        problems = load_problems(path)
    except ValueError as error:
        raise UsageError(f"--{option}: {error}") from error
    if not problems:
        raise UsageError(f"--{option}: {path} holds no problems")
    return problems


def problems_to_ask(option: str, path: Path, run: RunConfig) -> list[Problem]:
    """The problems of a file whose prompts a policy is to answer.

    Raises:
        UsageError: as `problems_from`; or the model cannot be read, or has no room for a prompt.
    """
    problems = problems_from(option, path)
    with reading_model(run.model):
        tokenizer = AutoTokenizer.from_pretrained(run.model)
        positions = AutoConfig.from_pretrained(run.model).max_position_embeddings
    check_prompts(path, problems, prompts.load_template(run.prompt), tokenizer, positions)
    return problems


class QuestionStream:
    """The training problems, shuffled anew each epoch, without end; the same for the same seed."""

    def __init__(self, problems: Sequence[Problem], seed: int) -> None:
        self._problems, self._seed = problems, seed

    def take(self, start: int, count: int) -> list[Problem]:
        """`count` problems from position `start` of the stream."""
        return [self._at(position) for position in range(start, start + count)]

    def _at(self, position: int) -> Problem:
        epoch, place = divmod(position, len(self._problems))
        return self._problems[shuffled(len(self._problems), self._seed, epoch)[place]]


@lru_cache(maxsize=4)
def shuffled(count: int, seed: int, epoch: int) -> tuple[int, ...]:
    """A permutation of `count` items for one epoch."""
    return tuple(np.random.default_rng((seed, QUESTIONS, epoch)).permutation(count).tolist())


def _load_policy(run: RunConfig) -> Policy:
    with reading_model(run.model):
        return Policy.load(
            run.model,
            dtype=run.dtype,
            temperature=run.temperature,
            activation_checkpointing=bool(run.activation_checkpointing),
        )


@contextmanager
def reading_model(model: str) -> Iterator[None]:
    """Around what reads a model's files.

    Raises:
        UsageError: they are not there, or cannot be used.
    """
    try:
        yield
    except (OSError, ValueError) as error:  # ValueError: a folder whose config names no model that transformers has
        said = str(error).splitlines()[0]
        raise UsageError(f"--model: no Hugging Face folder or hub name that can be used: {model!r} ({said})") from error


def _seed_everything(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 (what libraries draw from)
    torch.manual_seed(seed)
