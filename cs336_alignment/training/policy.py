"""The policy that is trained: a causal language model, its tokenizer, and one forward pass for every algorithm.

Weights are float32 by default, whatever the compute dtype: in bfloat16 an AdamW update of 1e-5 is smaller than the
distance to the next number, and vanishes. On one GPU the forward pass runs under bfloat16 autocast; a policy that is
sharded over several is put together in bfloat16, layer by layer.

Dropout is off, in training too: the engine that samples has none, and importance ratios compare the two.
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.modeling_layers import GradientCheckpointingLayer

from cs336_alignment.numerics.log_probs import TokenLoss, chunked_log_probs, chunked_token_loss
from cs336_alignment.rollout.engine import WeightSum
from cs336_alignment.rollout.transformers_engine import Dtype
from cs336_alignment.run_folder import UsageError
from cs336_alignment.training.packing import PACKED_ATTENTION, PackedBatch

ONE_FILE = "1TB"
"""Larger than any policy here: a checkpoint's weights lie in one file, whatever transformers' own limit is."""


@dataclass(frozen=True)
class TokenScores:
    """What a forward pass says of the response tokens of a batch, in the order of its examples.

    Attributes:
        loss: the sum of the weighted token losses, with gradient; 0 where no loss was asked for.
        log_probs, entropy: of each response token, in nats, without gradient.
    """

    loss: Float[Tensor, ""]
    log_probs: Float[Tensor, "tokens"]
    entropy: Float[Tensor, "tokens"]


class Policy(nn.Module):
    """A Hugging Face causal language model whose forward pass goes from packed examples to losses."""

    def __init__(
        self, model: Any, tokenizer: Any, temperature: float = 1.0, compute_dtype: torch.dtype | None = None
    ) -> None:
        """Wrap a model.

        Args:
            model: has `base_model`, `get_output_embeddings()` without bias, and attends as `packing` needs it.
            tokenizer: its tokenizer; head rows beyond it are padding, for training as for sampling.
            temperature: of the distribution whose log-probs are taken: the one that rollouts are sampled at.
            compute_dtype: of the forward pass; None is that of the weights.
        """
        super().__init__()
        head = model.get_output_embeddings()
        if getattr(head, "bias", None) is not None:
            raise ValueError("an output head with bias is not supported")
        self.model = model
        self.tokenizer = tokenizer
        self.temperature = temperature
        self.compute_dtype = compute_dtype

    @classmethod
    def load(
        cls,
        name: str | Path,
        *,
        dtype: Dtype = "auto",
        temperature: float = 1.0,
        activation_checkpointing: bool = False,
    ) -> "Policy":
        """Load a Hugging Face directory or hub name, with float32 weights, onto the CPU.

        Args:
            name: the model.
            dtype: of compute; "auto" is bfloat16 on a GPU, float32 on a CPU.
            temperature: as for the constructor.
            activation_checkpointing: keep only each layer's input, and compute the layer again in the backward pass.

        Raises:
            UsageError: activation checkpointing of a model with dropout, which transformers would turn on with it.
        """
        model: Any = AutoModelForCausalLM.from_pretrained(
            name, dtype=torch.float32, attn_implementation=PACKED_ATTENTION
        )
        model.eval()
        if activation_checkpointing:
            checkpoint_layers(model)
        bfloat16 = dtype == "bfloat16" or (dtype == "auto" and torch.cuda.is_available())
        return cls(model, AutoTokenizer.from_pretrained(name), temperature, torch.bfloat16 if bfloat16 else None)

    def layers(self) -> list[nn.Module]:
        """The transformer's layers, the units of sharding; none where the model names no such thing."""
        return list(getattr(self.model.base_model, "layers", []))

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def forward(self, batch: PackedBatch, token_loss: TokenLoss | None = None) -> TokenScores:
        """Log-probs and entropy of every response token, and the sum of their losses."""
        with self._precision():
            hidden = self.model.base_model(
                input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False, layout=batch.layout
            ).last_hidden_state[0]
            rows = hidden.index_select(0, batch.predictors)
            head = self.model.get_output_embeddings().weight
            vocab_size = len(self.tokenizer)
            if token_loss is None:
                log_probs, entropy = chunked_log_probs(rows, head, batch.labels, self.temperature, vocab_size)
                return TokenScores(log_probs.new_zeros(()), log_probs, entropy)
            return TokenScores(*chunked_token_loss(rows, head, batch.labels, token_loss, self.temperature, vocab_size))

    def weights(self, dtype: torch.dtype | None = None) -> Iterator[tuple[str, Tensor]]:
        """The items of the model's state dict, a tied head included, for a rollout engine or a checkpoint.

        A sharded parameter is put together when its turn comes, on every rank at once: read them one at a time.

        Args:
            dtype: to convert to, before anything is put together; None leaves them as they are.
        """
        for name, tensor in self.model.state_dict().items():
            converted = tensor.detach().to(dtype or tensor.dtype)
            yield name, converted.full_tensor() if isinstance(converted, DTensor) else converted

    def weight_sums(self, dtype: torch.dtype) -> dict[str, WeightSum]:
        """Checksums of `weights(dtype)`, from each rank's own shards."""
        sums = {}
        for name, tensor in self.model.state_dict().items():
            local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
            part = WeightSum.of(local.to(dtype))
            if isinstance(tensor, DTensor):
                both = torch.tensor([part.total, part.magnitude], dtype=torch.float64, device=tensor.device)
                dist.all_reduce(both, group=tensor.device_mesh.get_group())
                part = WeightSum(tensor.numel(), *both.tolist())
            sums[name] = part
        return sums

    @torch.no_grad()
    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Take the weights of a checkpoint; a tied head may be missing from it.

        Raises:
            KeyError: another is.
        """
        own = self.model.state_dict()
        given = {_storage(own[name]) for name in weights}
        for name in own.keys() - weights.keys():
            if _storage(own[name]) not in given:
                raise KeyError(f"the checkpoint has no {name}")
        for name, tensor in weights.items():
            target = own[name]
            if isinstance(target, DTensor):
                tensor = distribute_tensor(tensor.to(target.device), target.device_mesh, target.placements)
            target.copy_(tensor)

    def save(self, folder: Path, weights: Mapping[str, Tensor] | None = None) -> None:
        """Write weights, config and tokenizer, to be read by `from_pretrained` and by vLLM.

        Args:
            folder: where to.
            weights: `weights()`, where several ranks had to put them together; None takes the model's own.
        """
        self.model.save_pretrained(folder, state_dict=dict(weights or self.weights()), max_shard_size=ONE_FILE)
        self.tokenizer.save_pretrained(folder)

    def _precision(self) -> AbstractContextManager[Any]:
        # Shards are put together in the compute dtype (training/distributed.py).
        if self.compute_dtype is None or isinstance(self, FSDPModule):
            return nullcontext()
        return torch.autocast(self.device.type, self.compute_dtype)


def checkpoint_layers(model: Any) -> None:
    """Turn activation checkpointing on. transformers does it in training mode alone, so the layers, and nothing within
    them, are put into it."""
    dropout = [name for name, value in model.config.to_dict().items() if "drop" in name and value]
    if dropout:
        raise UsageError(
            f"--activation-checkpointing: the model's config has {', '.join(dropout)}, which it would turn on: set it "
            "to 0 in its config.json"
        )
    model.gradient_checkpointing_enable({"use_reentrant": False})
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.training = True


def _storage(tensor: Tensor) -> int:
    """Where a tensor's values lie; tied weights share it."""
    local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return local.untyped_storage().data_ptr()
