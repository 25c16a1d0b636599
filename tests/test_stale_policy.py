"""A rollout engine that does not hold the policy in training ends the run, whichever way it went wrong."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cs336_alignment.rollout.proof import SamplerDifferenceError, StalePolicyError
from cs336_alignment.rollout.transformers_engine import Dtype, TransformersEngine
from cs336_alignment.run_folder import read_complete_json_lines
from cs336_alignment.training.grpo import GRPOConfig, train_grpo
from cs336_alignment.training.learner import OptimizerConfig
from cs336_alignment.training.session import RunConfig, Session, problems_from
from tests.common import REPOSITORY

POLICY = REPOSITORY / "data" / "policy"
DATA = REPOSITORY / "data" / "arithmetic"


class Skipping(TransformersEngine):
    """Takes the first weights, and after them only says that it took more."""

    def load_policy(self, weights, version):
        if version == 0:
            super().load_policy(weights, version)
        self._policy_version = version


class WithoutHead(TransformersEngine):
    """Packs the head apart from the embedding, does not name it, and leaves it as it was."""

    def load_policy(self, weights, version):
        old = torch.nn.Linear(*reversed(self.model.lm_head.weight.shape), bias=False)
        old.weight.data = self.model.lm_head.weight.detach().clone()
        super().load_policy(weights, version)
        if version:
            self.model.lm_head = old

    def held_weights(self):
        return {name: sums for name, sums in super().held_weights().items() if name != "lm_head.weight"}


class Remembering(TransformersEngine):
    """Answers a prompt that it has seen before from the weights of then, as from a prefix cache that was not reset."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.seen = {}

    def generate(self, prompts, sampling):
        key = (tuple(prompts), replace(sampling, seed=0))
        return self.seen.setdefault(key, super().generate(prompts, sampling))

    def forget_prompts(self):
        self.seen.clear()


class NoisyWhenBusy(TransformersEngine):
    """Right for the few sequences of a proof; of more, every eighth response has log-probs of something else."""

    def generate(self, prompts, sampling):
        drawn = super().generate(prompts, sampling)
        if len(prompts) * sampling.n > 8:
            for group in drawn:
                noise = tuple(value - 0.5 for value in group[0].log_probs)
                group[0] = replace(group[0], log_probs=noise)
        return drawn


def run(tmp_path: Path, engine: type[TransformersEngine], dtype: Dtype = "float32") -> None:
    config = GRPOConfig(
        run=RunConfig(
            str(POLICY),
            DATA / "train.jsonl",
            DATA / "dev.jsonl",
            tmp_path,
            eval_limit=4,
            max_tokens=60,
            wandb="disabled",
            dtype=dtype,
        ),
        optimizer=OptimizerConfig(learning_rate=1e-3, token_budget=2048),
        rollout_batch_size=32,
        train_batch_size=32,
        n_grpo_steps=3,
    )
    problems = problems_from("train-data", config.run.train_data)

    def open_engine() -> TransformersEngine:
        return engine(POLICY, dtype=dtype, max_batch_size=64)

    with Session(config, config.run, config.optimizer, problems[:4], steps=3, engine=open_engine) as session:
        train_grpo(config, problems, session)


@pytest.mark.parametrize(
    ("engine", "cause"),
    [
        (Skipping, "holds other weights: its .* sums to"),
        (WithoutHead, r"log-probs differ .*a tied head that was left out"),
        (Remembering, r"log-probs differ .*its prefix cache was not reset"),
    ],
)
def test_a_sync_that_went_wrong_stops_the_run(tmp_path, engine, cause):
    with pytest.raises(StalePolicyError, match=cause):
        run(tmp_path, engine)
    # The first step was right; the engine was wrong about what came of it.
    assert [row["step"] for row in read_complete_json_lines(tmp_path / "metrics.jsonl")] == [0, 1]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_noise_at_large_batches_stops_the_run_before_it_learns_from_it(tmp_path, dtype):
    with pytest.raises(SamplerDifferenceError, match=r"step 1: .*try --engine-batch-size 32"):
        run(tmp_path, NoisyWhenBusy, dtype)
    assert [row["step"] for row in read_complete_json_lines(tmp_path / "metrics.jsonl")] == [0]
    written = read_complete_json_lines(tmp_path / "sampler_difference_step_1.jsonl")
    assert written
    for row in written:
        apart = torch.tensor(row["trainer_log_probs"]) - torch.tensor(row["sampler_log_probs"])
        assert apart.mean() == pytest.approx(0.5, abs=1e-3 if dtype == "float32" else 0.1)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_right_engine_goes_through(tmp_path, dtype):
    run(tmp_path, TransformersEngine, dtype)
    rows = [row for row in read_complete_json_lines(tmp_path / "metrics.jsonl") if row["kind"] == "train"]
    assert len(rows) == 3
    limit = 1e-4 if dtype == "float32" else 0.05
    assert all(row["sampler_difference"] < limit for row in rows if row["sampler_difference"] is not None)
