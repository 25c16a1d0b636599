"""`grade_batch` inside torchrun: each rank grades its share in workers of its own, and outlives one that is killed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

RANKS = 2
RESPONSES = 12
KILLED = (4, 9)  # one item of each rank's share

SCRIPT = """\
import json, os, signal, sys
from cs336_alignment.drgrpo_grader import r1_zero_reward_fn
from cs336_alignment.grading import grade_batch


def reward(response, gold):
    if response == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    return r1_zero_reward_fn(response, gold, fast=False)


def main():
    import torch.distributed as dist

    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    responses, golds = json.load(open(sys.argv[1]))
    graded = grade_batch(responses[rank::world], golds[rank::world], reward, workers=rank + 1)
    share = [(item.rewards and item.rewards["reward"], item.error) for item in graded]
    shares = [None] * world if rank == 0 else None
    dist.gather_object(share, shares)
    if rank == 0:
        json.dump(shares, open(sys.argv[2], "w"))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
"""


@pytest.mark.slow
def test_ranks_grade_their_shares_and_a_killed_worker_loses_its_item_alone(tmp_path: Path):
    script, batch, result = (tmp_path / name for name in ("rank.py", "batch.json", "result.json"))
    script.write_text(SCRIPT, encoding="utf-8")
    responses = [f"</think> <answer>{n} dollars</answer>" for n in range(RESPONSES)]
    for position in KILLED:
        responses[position] = "kill"
    # The last two answers are wrong.
    golds = [str(n) for n in range(RESPONSES - 2)] + ["0", "0"]
    batch.write_text(json.dumps([responses, golds]), encoding="utf-8")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={RANKS}"]
    done = subprocess.run([*launch, script, batch, result], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    shares = json.loads(result.read_text(encoding="utf-8"))
    graded = {n: shares[n % RANKS][n // RANKS] for n in range(RESPONSES)}
    assert {n for n, (_, error) in graded.items() if error} == set(KILLED)
    assert all(graded[n] == [None, "worker died"] for n in KILLED)
    others = [n for n in range(RESPONSES) if n not in KILLED]
    assert [graded[n][0] for n in others] == [1.0] * (len(others) - 2) + [0.0, 0.0]
