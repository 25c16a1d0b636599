"""Two ranks give what one gives, but for the order in which floats are added."""

import os
import subprocess
import sys

import pytest
import torch

from cs336_alignment.training.distributed import Ranks
from tests.common import REPOSITORY
from tests.rank_worker import BUDGETS, train


def launch(module_arguments, ranks=2):
    """Run a module on several ranks of this machine; what it printed where it fails."""
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={ranks}", "--standalone"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    finished = subprocess.run(
        [*command, *module_arguments], cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=300
    )
    assert finished.returncode == 0, finished.stderr[-4000:]


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["ddp", "fsdp2"])
def test_two_ranks_train_as_one(tmp_path, sharding):
    launch(["-m", "tests.rank_worker", str(tmp_path / "result"), sharding])
    alone = [train(Ranks(), tmp_path, token_budget) for token_budget in BUDGETS]
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
