"""Checks that run the library's own parts, small: an engine and its syncs, GRPO steps and a checkpoint.

They are a run's own code on every rank: `Session` opens, syncs, proves and saves, `train_grpo` is the loop.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Any, Literal
from zlib import crc32

import torch
from safetensors.torch import load_file

from cs336_alignment.evaluation import grader_of
from cs336_alignment.math_baseline import data_folder
from cs336_alignment.node_check.outcome import CheckFailedError, Figures, Setting
from cs336_alignment.numerics.aggregation import sequence_mean_weights
from cs336_alignment.ranks import Ranks
from cs336_alignment.rollout.engine import Sampling, WeightSum
from cs336_alignment.rollout.selection import CPU_INSTALL
from cs336_alignment.run_folder import UsageError, read_complete_json_lines
from cs336_alignment.tasks.problem import Problem
from cs336_alignment.training.checkpoint import Checkpoints
from cs336_alignment.training.grpo import GRPOConfig, train_grpo
from cs336_alignment.training.learner import OptimizerConfig
from cs336_alignment.training.memory import GIB
from cs336_alignment.training.memory_check import check_memory, read_shape
from cs336_alignment.training.memory_plan import predict
from cs336_alignment.training.rollouts import Rollout
from cs336_alignment.training.session import RunConfig, Session, problems_from

STEPS = 2
"""The first makes AdamW's moments and warms up; the second shows the memory and the time of those that follow."""
MEMORY_MARGIN = 1.1
"""Of what was predicted, before a run counts as larger."""
POLL_SECONDS = 0.05


def without_vllm(setting: Setting) -> str | None:
    """Why no engine of vLLM's is started; on a GPU it has to be there."""
    if find_spec("vllm") is not None or setting.gpus:
        return None
    return f"vLLM is not installed, and a CPU does without; to have it: {CPU_INSTALL}"


def without_groups(setting: Setting) -> str | None:
    """Why no engine is spread over GPUs."""
    if group_size(setting) == 1:
        return f"{setting.ranks} GPU(s) do not divide into groups of 2 or 4"
    return without_vllm(setting)


def without_model(setting: Setting) -> str | None:
    """Why the small policy is all that is trained."""
    return "no --model was given" if setting.model is None else None


def group_size(setting: Setting) -> Literal[1, 2, 4]:
    """Ranks that share an engine, where one is spread."""
    if setting.ranks % 4 == 0:
        return 4
    return 2 if setting.ranks % 2 == 0 else 1


def engine(setting: Setting) -> Figures:
    """An engine on each GPU: start, sample, sleep, wake, and two syncs of weights, each proved."""
    return _engine(setting, tensor_parallel_size=1)


def engine_tensor_parallel(setting: Setting) -> Figures:
    """The same with the engines' weights spread over GPUs."""
    size = group_size(setting)
    return _engine(setting, tensor_parallel_size=size)


def _engine(setting: Setting, tensor_parallel_size: Literal[1, 2, 4]) -> Figures:
    config = _small_config(setting, "engine")
    config = replace(config, run=replace(config.run, engine="vllm", tensor_parallel_size=tensor_parallel_size))
    sampling = Sampling(max_tokens=32, n=2)
    with _session(config) as (session, problems):
        figures: Figures = {"engine": session.engine.description["engine"], "tensor_parallel": tensor_parallel_size}
        proofs, seconds = [], []

        def sync() -> None:
            began = monotonic()
            proofs.append(session.sync_engine(problems))
            seconds.append(monotonic() - began)

        sync()
        session.sample(problems, sampling)
        held = session.engine.held_weights()
        session.engine.sleep()
        session.engine.wake()
        lost = None if session.engine.held_weights() == held else "the engine's weights changed while it slept"
        problem = session.ranks.any_of(lost)
        if problem:
            raise CheckFailedError(problem, figures=figures)
        rollouts = session.sample(problems, sampling)
        session.engine.sleep()
        _imitate(session, rollouts)
        sync()
        session.sample(problems, sampling)
        return figures | {
            "sync_seconds": [round(value, 2) for value in seconds],
            "proof_mean_difference": [proof.proof_mean_difference for proof in proofs],
            "proof_largest_difference": [proof.proof_largest_difference for proof in proofs],
        }


def _imitate(session: Session, rollouts: list[Rollout]) -> None:
    """An optimiser step towards the rollouts, so that there is something new to sync."""
    lengths = torch.tensor([rollout.length for rollout in rollouts])
    weights = sequence_mean_weights(lengths)

    def token_loss_of(rows: list[int]) -> Any:
        factor = weights[rows].repeat_interleave(lengths[rows]).to(session.ranks.device)
        return lambda log_probs, at: -log_probs * factor[at].to(log_probs)

    session.learner.step([rollout.example for rollout in rollouts], weights, token_loss_of)


def grpo_small(setting: Setting) -> Figures:
    """GRPO steps and a checkpoint with the small policy that comes with the project."""
    return _grpo(_small_config(setting, "grpo_small"), setting)


def grpo_model(setting: Setting) -> Figures:
    """The same with the model that was named: on GPUs at the sizes of a real run."""
    assert setting.model is not None, "asked of without_model"
    small = _small_config(setting, "grpo_model")
    if not setting.gpus:
        return _grpo(replace(small, run=replace(small.run, model=setting.model)), setting)
    run = replace(small.run, model=setting.model, max_tokens=RunConfig().max_tokens)
    return _grpo(GRPOConfig(run=run, n_grpo_steps=STEPS), setting)


def planned(config: GRPOConfig) -> tuple[GRPOConfig, int]:
    """The options of a run on GPUs, with those that memory decides, and the bytes predicted for each GPU.

    Raises:
        UsageError: the run would not fit; the message names the option to change.
    """
    chosen = check_memory(config)
    return chosen, predict(chosen, read_shape(config.run.model), config.longest_example()).total


def _grpo(config: GRPOConfig, setting: Setting) -> Figures:
    predicted = 0
    if setting.gpus:
        config, predicted = planned(config)
    folder = config.run.output
    assert folder is not None
    # Once the session is open: asking for memory from another thread would break the engine's capture of its graphs.
    with _session(config) as (session, problems), PeakMemory() as memory:
        # Rewards by chance, so that there is a gradient whatever the model can do.
        session.grader = grader_of(_coin)
        began = monotonic()
        train_grpo(config, problems, session)
        session.ranks.wait()
        total = monotonic() - began
        rows = read_complete_json_lines(folder / "metrics.jsonl")
        figures = {"engine": session.engine.description["engine"], "ranks": session.ranks.count}
        figures |= speeds(config, rows, checkpoint_seconds=total - rows[-1]["timing"]["wall_seconds"])
        problem = session.ranks.any_of(_other_checkpoint(folder, session.policy.weight_sums(torch.float32)))
        peak = max(session.ranks.gather([memory.peak]))
    if problem:
        raise CheckFailedError(problem, figures=figures)
    if not setting.gpus:
        return figures | {"memory": "not compared: the prediction is a GPU's"}
    return figures | compare_memory(peak, predicted, figures)


def _coin(response: str, _: str) -> dict[str, float]:
    reward = float(crc32(response.encode()) % 2)
    return {"format_reward": 1.0, "answer_reward": reward}


def speeds(config: GRPOConfig, rows: list[dict[str, Any]], checkpoint_seconds: float) -> Figures:
    """Speeds in the last step, and from them the time of a run of the default sizes, by proportion: all its steps, its
    evaluations at the rollouts' speed, its checkpoints.

    Args:
        config: of the steps that were taken.
        rows: of metrics.jsonl.
        checkpoint_seconds: of writing one.
    """
    last = [row for row in rows if row["kind"] == "train"][-1]
    rollout_seconds, train_seconds = last["timing"]["rollout_seconds"], last["timing"]["train_seconds"]
    usual = GRPOConfig()
    a_rollout, a_sequence = rollout_seconds / config.rollout_batch_size, train_seconds / config.rollout_batch_size
    steps = usual.n_grpo_steps * usual.rollout_batch_size * (a_rollout + a_sequence)
    evaluations = (usual.n_grpo_steps // usual.run.eval_every + 1) * usual.run.eval_limit * a_rollout
    checkpoints = usual.n_grpo_steps // usual.run.checkpoint_every * checkpoint_seconds
    return {
        "rollout_tokens_a_second": round(last["mean_length"] * config.rollout_batch_size / rollout_seconds),
        "train_tokens_a_second": round(last["tokens_run"] / train_seconds),
        "rollout_seconds": round(rollout_seconds, 2),
        "train_seconds": round(train_seconds, 2),
        "checkpoint_seconds": round(checkpoint_seconds, 2),
        f"predicted_minutes_of_{usual.n_grpo_steps}_steps": round((steps + evaluations + checkpoints) / 60, 1),
    }


def _other_checkpoint(folder: Path, expected: dict[str, WeightSum]) -> str | None:
    """What is wrong with the checkpoint, read back; None where it holds the policy."""
    path = Checkpoints(folder).latest()
    if path is None:
        return "no checkpoint was written"
    stored = load_file(path / "model.safetensors")
    for name, weight in stored.items():
        ours, theirs = expected[name], WeightSum.of(weight.float())
        if ours.numel != theirs.numel or abs(ours.total - theirs.total) > 1e-9 * ours.magnitude:
            return f"the checkpoint's {name} is not the policy's"
    return None


def compare_memory(peak: int, predicted: int, figures: Figures) -> Figures:
    """Measured beside predicted, both in bytes.

    Raises:
        CheckFailedError: a GPU had more in use than was predicted, with a margin; it keeps `figures`.
    """
    compared: Figures = {"peak_gib": round(peak / GIB, 2), "predicted_gib": round(predicted / GIB, 2)}
    if peak > MEMORY_MARGIN * predicted:
        raise CheckFailedError(
            f"a GPU had {peak / GIB:.1f} GiB in use, more than the predicted {predicted / GIB:.1f}",
            "nvidia-smi, for other programs; then a lower --token-budget than the table in the log allows",
            figures | compared,
        )
    return compared


class PeakMemory:
    """The most memory in use on this rank's GPU while this context lasts, by whatever program: looked at every
    `POLL_SECONDS`, from outside of torch's allocator, which does not know the engine's."""

    def __init__(self) -> None:
        self.peak = 0
        """Bytes; 0 without a GPU."""
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="peak memory", daemon=True)

    def __enter__(self) -> "PeakMemory":
        self._device = Ranks().device
        if self._device.type == "cuda":
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(POLL_SECONDS):
            free, total = torch.cuda.mem_get_info(self._device)
            self.peak = max(self.peak, total - free)


def _small_config(setting: Setting, name: str) -> GRPOConfig:
    """GRPO with the policy and the problems that come with the project, in seconds.

    Raises:
        UsageError: they are not there.
    """
    data = data_folder()
    policy = data / "policy"
    if not policy.exists():
        raise UsageError(f"there is no {policy}: run this in a checkout of the project")
    run = RunConfig(
        model=str(policy),
        train_data=data / "arithmetic" / "train.jsonl",
        eval_data=data / "arithmetic" / "dev.jsonl",
        output=setting.runs / name,
        max_tokens=64,
        eval_every=STEPS,
        eval_limit=8,
        checkpoint_every=STEPS,
        wandb="disabled",
    )
    return GRPOConfig(
        run=run,
        optimizer=OptimizerConfig(learning_rate=1e-4, token_budget=2048),
        n_grpo_steps=STEPS,
        rollout_batch_size=32,
        train_batch_size=32,
    )


@contextmanager
def _session(config: GRPOConfig) -> Iterator[tuple[Session, list[Problem]]]:
    """A session, and problems for a few prompts a rank. launch.py removes its folder."""
    problems = problems_from("train-data", config.run.train_data)
    eval_problems = problems_from("eval-data", config.run.eval_data)
    steps = config.n_grpo_steps
    with Session(config, config.run, config.optimizer, eval_problems, steps=steps) as session:
        yield session, problems[: 4 * session.ranks.count]
        session.ranks.wait()
