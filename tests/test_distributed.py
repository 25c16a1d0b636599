"""Two ranks give what one gives, but for the order in which floats are added."""

import os
import subprocess
import sys

import pytest
import torch

from cs336_alignment.ranks import Ranks
from cs336_alignment.run_folder import UsageError
from tests.common import REPOSITORY
from tests.rank_worker import BUDGETS, train

TORCHRUN = "torch.distributed.run --nproc_per_node=2 --standalone"
# The README's `accelerate launch --multi_gpu --num_processes 2`, on a port that is free. As a user's accelerate config
# may, it asks for bfloat16; precision is --dtype's alone, float32 in these tests.
ACCELERATE = (
    "accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1 --mixed_precision bf16 "
    "--dynamo_backend no --main_process_port 0"
)


def launch(arguments, launcher=TORCHRUN):
    """Run a script on two ranks of this machine; what it printed where it fails."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", *launcher.split(), *arguments]
    finished = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=300)
    assert finished.returncode == 0, finished.stderr[-4000:]


def test_accelerate_that_started_one_process_of_several_is_an_error(monkeypatch):
    """What `accelerate launch --num_processes 2` does without GPUs: this environment, and nobody to meet."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setenv("MASTER_ADDR", "node-7")  # as a job script may export it
    Ranks()
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with pytest.raises(UsageError, match="--multi_gpu --num_processes N"):
        Ranks()


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["replicas", "fsdp2"])
def test_two_ranks_train_as_one(tmp_path, sharding):
    launch(["-m", "tests.rank_worker", str(tmp_path / "result"), sharding])
    alone = [train(Ranks(), sharding, tmp_path, token_budget) for token_budget in BUDGETS]
    for rank in range(2):
        for one, other in zip(alone, torch.load(tmp_path / f"result.{rank}.pt"), strict=True):
            assert other["rollouts"] == one["rollouts"]
            assert [question for question, *_ in one["rollouts"]] == [f"what is {n}" for n in range(5) for _ in "12"]
            for name in ("loss", "grad_norm", "tokens_run"):
                assert other[name] == pytest.approx(one[name], rel=1e-10)
            for name in ("log_probs", "scores"):
                assert torch.cat(other[name]).tolist() == pytest.approx(torch.cat(one[name]).tolist(), rel=1e-10)
            for name, weight in one["weights"].items():
                torch.testing.assert_close(other["weights"][name], weight, rtol=1e-9, atol=1e-10, msg=name)
            # A resumed rank has the bits, and the random numbers, of one that went on.
            for result in (one, other):
                assert result["drawn"][0] == result["drawn"][1]
                for name, weight in result["weights"].items():
                    assert torch.equal(result["resumed_weights"][name], weight), name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("raise", "error: rank 1 failed: ValueError: the data ran out"),
        ("kill", "error: rank 1 failed: it ended without a word, as a killed process does"),
    ],
)
def test_one_rank_that_fails_ends_the_others(how, message):
    """Three ranks, of which one fails while the others wait for it: torchrun would give them a quarter of an hour."""
    command = [sys.executable, "-m", *TORCHRUN.replace("=2", "=3").split(), "-m", "tests.failing_rank", how]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "900"}
    ended = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=120)
    assert ended.returncode != 0
    said = [line for line in ended.stderr.splitlines() if line.startswith("error: rank")]
    assert said == [message] * 2  # both of the others
