"""Two ranks give what one gives, but for the order in which floats are added."""

import os
import subprocess
import sys
from datetime import timedelta

import pytest
import torch

from cs336_alignment.ranks import Ranks
from cs336_alignment.run_folder import UsageError
from tests.common import REPOSITORY
from tests.rank_worker import BUDGETS, real_gradient, train

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
def test_shards_in_half_precision_come_near_float32(tmp_path):
    """The default on several GPUs. The weights stay float32; the gradient is off by what bfloat16 rounds away: 1 to 3
    per cent of its norm, and it does not shrink with the number of ranks, as an average in place of a sum would."""
    launch(["-m", "tests.rank_worker", str(tmp_path / "result"), "fsdp2"])
    exact = real_gradient(Ranks(), "float32")
    for rank in range(2):
        half, checkpointed, whole = torch.load(tmp_path / f"result.half.{rank}.pt")
        # All layers are given the one layout of their row, which keeps what was computed from it.
        assert half["layouts"] == checkpointed["layouts"] == whole["layouts"] >= 1
        for name, gradient in half["gradients"].items():
            torch.testing.assert_close(checkpointed["gradients"][name], gradient, rtol=1e-3, atol=1e-5, msg=name)
        assert half["dtypes"] == {"torch.float32"}
        assert half["log_probs"].dtype == torch.float32
        torch.testing.assert_close(half["log_probs"], exact["log_probs"], rtol=0.02, atol=0.02)
        assert not torch.equal(half["log_probs"], exact["log_probs"])
        differences = [half["gradients"][name] - gradient for name, gradient in exact["gradients"].items()]
        apart = sum(difference.square().sum() for difference in differences)
        norm = sum(gradient.square().sum() for gradient in exact["gradients"].values())
        assert 1e-4 < (apart / norm) ** 0.5 < 0.04


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


def test_collective_operations_may_take_two_hours(monkeypatch):
    """As long as one rank writes a checkpoint of 18 GB on a slow disk."""
    given = {}
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("torch.distributed.init_process_group", lambda backend, **options: given.update(options))
    monkeypatch.setattr("cs336_alignment.peer_watch.PeerWatch.start", lambda index, count: None)
    assert Ranks().index == 1
    assert given["timeout"] == timedelta(hours=2)


@pytest.mark.parametrize(("ranks", "tensor_parallel_size"), [(3, 2), (2, 4), (6, 4)])
def test_ranks_that_make_no_whole_groups_are_refused(monkeypatch, ranks, tensor_parallel_size):
    monkeypatch.setenv("WORLD_SIZE", str(ranks))
    message = rf"--tensor-parallel-size {tensor_parallel_size}: the ranks on a node, here {ranks}, must be a multiple"
    with pytest.raises(UsageError, match=message):
        Ranks(tensor_parallel_size)
