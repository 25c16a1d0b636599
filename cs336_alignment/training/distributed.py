"""How a policy in training lies on several ranks, and how its gradients meet.

    fsdp2      a part of every weight, gradient and moment on each rank, float32; a layer is put together in the compute
               dtype when it runs, and its gradients are added in float32 after every microbatch
    replicas   everything on each rank; the gradients are added once a step

Either way gradients add up over ranks: the losses' weights are those of the whole train batch already. FSDP2 is the
default, by arithmetic: for 1.5 B parameters on four GPUs of 40 GB replicas hold 23 GiB of weights, moments and
gradients each, which leaves room for microbatches of about 2,000 tokens, shards hold 6 GiB and leave room for several
times as many. What FSDP2 sends for it (2 bytes a parameter in each pass, 4 for the gradients) takes a twentieth of a
microbatch's compute over NVLink. Replicas send 4 bytes a parameter a step, and suit GPUs on a slow bus.

torch's `DistributedDataParallel` would do as replicas do, but its buckets keep a float32 copy of all gradients between
steps, beside the rollout engine.
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from cs336_alignment.ranks import Ranks

Sharding = Literal["fsdp2", "replicas"]


def spread(
    module: nn.Module, layers: Sequence[nn.Module], ranks: Ranks, sharding: Sharding, compute_dtype: torch.dtype | None
) -> None:
    """Bring a module to this rank's device and, with several ranks and FSDP2, shard its parameters in place.

    Args:
        module: the same on every rank.
        layers: parts of it that are put together each by itself, when they run.
        ranks, sharding: see the module's page.
        compute_dtype: of the parameters while they are put together; None leaves them as they are.
    """
    module.to(ranks.device)
    if ranks.count == 1 or sharding == "replicas":
        return
    mesh = init_device_mesh(ranks.device.type, (ranks.count,))
    # Inputs are in the compute dtype already. Casting them would copy the layout of a row anew for every layer.
    precision = MixedPrecisionPolicy(
        param_dtype=compute_dtype, reduce_dtype=torch.float32 if compute_dtype else None, cast_forward_inputs=False
    )
    for part in (*layers, module):
        fully_shard(part, mesh=mesh, mp_policy=precision)
        assert isinstance(part, FSDPModule)
        # Add, where the default is to average.
        part.set_gradient_divide_factor(1.0)
        part.set_force_sum_reduction_for_comms(True)


def add_gradients(module: nn.Module, ranks: Ranks) -> None:
    """After the last microbatch of a step: the sum of all ranks' gradients on each of them. Shards have it already."""
    if ranks.count == 1 or isinstance(module, FSDPModule):
        return
    gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
    for work in [dist.all_reduce(gradient, async_op=True) for gradient in gradients]:
        assert work is not None
        work.wait()


def free_whole_weights(module: nn.Module) -> None:
    """Let go of what a pass without gradient leaves put together: the parameters that belong to no layer."""
    if isinstance(module, FSDPModule):
        module.reshard()
