"""Checks of a machine with something broken on purpose, for tests/test_check_node.py to run in fresh processes."""

import os
import signal
import time

from cs336_alignment.node_check.outcome import CheckFailedError, Figures, Setting
from cs336_alignment.ranks import Ranks


def counts_ranks(_: Setting) -> Figures:
    ranks = Ranks()
    return {"ranks": ranks.gather([ranks.index])}


def finds_a_fault_on_the_second_rank(_: Setting) -> Figures:
    ranks = Ranks()
    if ranks.index == 1:
        raise CheckFailedError("bad numbers on rank 1", "nvidia-smi -i 1", {"seen": 3})
    ranks.wait()
    return {}


def kills_the_second_rank(_: Setting) -> Figures:
    """As the kernel's out-of-memory killer does."""
    ranks = Ranks()
    if ranks.index == 1:
        print("rank 1 was here", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    ranks.wait()
    return {}


def hangs(setting: Setting) -> Figures:
    with (setting.work / "processes").open("a") as file:
        print(os.getpid(), file=file)
    time.sleep(600)
    return {}


def engine_without_sync(setting: Setting) -> Figures:
    """load_policy says that it was made, and leaves the weights as they were."""
    from cs336_alignment.node_check import learning
    from cs336_alignment.rollout.vllm_engine import VLLMEngine

    def load_policy(self: VLLMEngine, weights: object, version: int) -> None:
        for _ in weights:  # type: ignore[attr-defined]
            pass
        self._policy_version = version

    VLLMEngine.load_policy = load_policy  # type: ignore[method-assign]
    return learning.engine(setting)


def wrong_sums(setting: Setting) -> Figures:
    """The second rank adds to what it was sent."""
    from cs336_alignment.node_check import devices

    all_reduce = devices.dist.all_reduce

    def faulty(tensor, *arguments, **options):
        work = all_reduce(tensor, *arguments, **options)
        if os.environ["RANK"] == "1":
            tensor[5] += 1
        return work

    devices.dist.all_reduce = faulty
    return devices.all_reduce(setting)


def checkpoint_of_other_weights(setting: Setting) -> Figures:
    """What is written is twice the policy."""
    from cs336_alignment.node_check import learning
    from cs336_alignment.training.policy import Policy

    save = Policy.save

    def twice(self: Policy, folder, weights=None):
        save(self, folder, {name: 2 * weight for name, weight in (weights or {}).items()})

    Policy.save = twice  # type: ignore[method-assign]
    return learning.grpo_small(setting)
