"""The ranks of a run: one process, or several under `torchrun`, `accelerate launch` or scripts/launch.py.

Every rank holds the whole train batch, as token ids, and knows the whole plan; what is shared out is the work:
generating, grading, forward and backward passes. So an algorithm reads the same on one rank and on many.

With tensor parallelism, ranks 0 .. T-1, T .. 2T-1 and so on form groups, each with one rollout engine whose weights are
spread over the group. The ranks of a group generate for the same prompts, and then share out what they generated.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from cs336_alignment.peer_watch import PeerWatch
from cs336_alignment.run_folder import UsageError

T = TypeVar("T")

TIMEOUT = timedelta(hours=2)
"""Of collective operations. Ranks wait this long while one writes a checkpoint or compiles; a rank that fails ends the
others at once, by the peer watch."""


class Ranks:
    """This process among its peers."""

    def __init__(self, tensor_parallel_size: int = 1) -> None:
        """Join the peers that a launcher started, if it started several.

        Args:
            tensor_parallel_size: consecutive ranks that share one rollout engine.

        Raises:
            UsageError: accelerate was asked for several processes and started one, or the ranks, or those of a node,
                do not divide into groups.
        """
        self.index = int(os.environ.get("RANK", "0"))
        self.count = int(os.environ.get("WORLD_SIZE", "1"))
        self.tensor_parallel_size = tensor_parallel_size
        self._check_launch()
        # A GPU or the CPU; Apple's GPU has no float64.
        on_gpu = torch.cuda.is_available()
        self.device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if on_gpu else torch.device("cpu")
        if on_gpu:
            torch.cuda.set_device(self.device)
        if self.count > 1 and not dist.is_initialized():
            # Objects travel between CPUs, so that they take nothing of the GPUs' memory.
            backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
            dist.init_process_group(backend, timeout=TIMEOUT)
            PeerWatch.start(self.index, self.count)

    @property
    def is_main(self) -> bool:
        return self.index == 0

    @property
    def group(self) -> int:
        """The number of this rank's tensor-parallel group."""
        return self.index // self.tensor_parallel_size

    @property
    def place_in_group(self) -> int:
        return self.index % self.tensor_parallel_size

    def share(self, items: Sequence[T]) -> tuple[int, Sequence[T]]:
        """The part of `items` that this rank's group generates for, contiguous, and the position of its first."""
        return _part(items, self.group, self.count // self.tensor_parallel_size)

    def share_in_group(self, items: Sequence[T]) -> tuple[int, Sequence[T]]:
        """The part of its group's `items` that this rank goes on with, contiguous, and the position of its first."""
        return _part(items, self.place_in_group, self.tensor_parallel_size)

    def gather(self, items: Sequence[T]) -> list[T]:
        """Every rank's items, in the order of the ranks, on every rank."""
        if self.count == 1:
            return list(items)
        parts: list[Any] = [None] * self.count
        dist.all_gather_object(parts, list(items))
        return [item for part in parts for item in part]

    def any_of(self, mine: T | None) -> T | None:
        """The first rank's value that is not None, the same on every rank; None where none has one."""
        return next((value for value in self.gather([mine]) if value is not None), None)

    def wait(self) -> None:
        """Until every rank is here."""
        self.gather([None])

    def _check_launch(self) -> None:
        # accelerate's launcher sets that address for several processes; without two GPUs it starts one, silently.
        launched_alone = "ACCELERATE_MIXED_PRECISION" in os.environ and "LOCAL_RANK" not in os.environ
        if self.count == 1 and launched_alone and os.environ.get("MASTER_ADDR") == "127.0.0.1":
            raise UsageError(
                "accelerate was asked for several processes and started one, as it does with fewer than two GPUs: give "
                "`accelerate launch --multi_gpu --num_processes N`, on CPUs too, or `torchrun --nproc_per_node N`"
            )
        on_this_node = int(os.environ.get("LOCAL_WORLD_SIZE", str(self.count)))
        if on_this_node % self.tensor_parallel_size:
            raise UsageError(
                f"--tensor-parallel-size {self.tensor_parallel_size}: the ranks on a node, here {on_this_node}, "
                f"must be a multiple of it: `torchrun --standalone --nproc-per-node {self.tensor_parallel_size} ...`"
            )


def several_ranks() -> bool:
    """Whether a launcher started several processes for this run."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


@contextmanager
def failing_together() -> Iterator[None]:
    """Around a whole program: whatever it raises on one rank ends the others too, with the same message."""
    try:
        yield
    except SystemExit:
        raise
    except BaseException as error:
        tell_peers(error)
        raise


def tell_peers(error: BaseException) -> None:
    """This rank fails, and the others with it. What is closed on the way out may wait for them, so say it first."""
    if isinstance(error, UsageError):
        PeerWatch.tell(str(error), status=2)
    else:
        PeerWatch.tell(f"{type(error).__name__}: {error}", status=1)


def leave_peers() -> None:
    """At the end of a program, which a process group that is still there can abort while the interpreter ends."""
    PeerWatch.stop()
    if dist.is_initialized():
        dist.destroy_process_group()


def _part(items: Sequence[T], number: int, count: int) -> tuple[int, Sequence[T]]:
    start, end = (len(items) * part // count for part in (number, number + 1))
    return start, items[start:end]
