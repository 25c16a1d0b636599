"""The ranks of a run, through accelerate: one process, or several under `accelerate launch` or `torchrun`.

Every rank holds the whole train batch, as token ids, and knows the whole plan; what is shared out is the work:
generating, grading, forward and backward passes. So an algorithm reads the same on one rank and on many.
"""

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator, DistributedDataParallelKwargs
from torch import nn
from torch.distributed.fsdp import FSDPModule, fully_shard

from cs336_alignment.run_folder import UsageError

T = TypeVar("T")

Sharding = Literal["ddp", "fsdp2"]


class Ranks:
    """This process among its peers."""

    def __init__(self, sharding: Sharding = "ddp") -> None:
        """Join the peers.

        Args:
            sharding: with several ranks, a whole policy on each (ddp), or a part of every weight, gradient and moment
                (fsdp2). By torch's `fully_shard` itself: accelerate's plugin leaves it out on CPUs.

        Raises:
            UsageError: accelerate was asked for several processes and started one.
        """
        ddp = DistributedDataParallelKwargs(gradient_as_bucket_view=True)
        # A GPU or the CPU; accelerate would choose Apple's GPU, which has no float64.
        # Precision is the policy's (--dtype), not that of an accelerate config.
        self.accelerator = Accelerator(cpu=not torch.cuda.is_available(), mixed_precision="no", kwargs_handlers=[ddp])
        self.sharding = sharding
        launched_alone = "ACCELERATE_MIXED_PRECISION" in os.environ and "LOCAL_RANK" not in os.environ
        if self.count == 1 and launched_alone and os.environ.get("MASTER_ADDR") == "127.0.0.1":
            # Its launcher sets that address for several processes; without two GPUs it starts one, and says nothing.
            raise UsageError(
                "accelerate was asked for several processes and started one, as it does with fewer than two GPUs: give "
                "`accelerate launch --multi_gpu --num_processes N`, on CPUs too, or `torchrun --nproc_per_node N`"
            )

    @property
    def index(self) -> int:
        return self.accelerator.process_index

    @property
    def count(self) -> int:
        return self.accelerator.num_processes

    @property
    def is_main(self) -> bool:
        return self.accelerator.is_main_process

    @property
    def device(self) -> torch.device:
        return self.accelerator.device

    def prepare(self, module: nn.Module, layers: Sequence[nn.Module]) -> nn.Module:
        """Bring a module to this rank's device, and wrap it; with fsdp2 each of `layers` is put together by itself."""
        module.to(self.device)
        if self.count == 1:
            return module
        if self.sharding == "ddp":
            return self.accelerator.prepare_model(module)
        for layer in layers:
            fully_shard(layer)
        fully_shard(module)
        return module

    def no_sync(self, wrapped: nn.Module) -> AbstractContextManager[Any]:
        """Backward passes in here add to this rank's gradients only; the next one outside brings them together."""
        if isinstance(wrapped, FSDPModule):
            return _unsynced(wrapped)
        return wrapped.no_sync() if isinstance(wrapped, nn.parallel.DistributedDataParallel) else nullcontext()

    def share(self, items: Sequence[T]) -> tuple[int, Sequence[T]]:
        """This rank's part of `items`, contiguous, and the position of its first."""
        start, end = (len(items) * rank // self.count for rank in (self.index, self.index + 1))
        return start, items[start:end]

    def gather(self, items: Sequence[T]) -> list[T]:
        """Every rank's items, in the order of the ranks, on every rank."""
        if self.count == 1:
            return list(items)
        parts: list[Any] = [None] * self.count
        dist.all_gather_object(parts, list(items))
        return [item for part in parts for item in part]

    def wait(self) -> None:
        """Until every rank is here."""
        self.accelerator.wait_for_everyone()


def leave_peers() -> None:
    """At the end of a program, which a process group that is still there can abort while the interpreter ends."""
    if dist.is_initialized():
        dist.destroy_process_group()


def unwrap(module: nn.Module) -> Any:
    """The module inside DDP's wrapper; FSDP2 shards in place and has none."""
    return module.module if isinstance(module, nn.parallel.DistributedDataParallel) else module


@contextmanager
def _unsynced(module: FSDPModule) -> Any:
    module.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        module.set_requires_gradient_sync(True)
