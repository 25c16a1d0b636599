"""Will a training command fit into the GPUs' memory? Asked of the options, the model's config and what SFT imitates,
before weights are loaded.

The arithmetic is memory.py's; this file brings the options to it.
"""

import os
from typing import Protocol, runtime_checkable

import torch
from transformers import AutoConfig

from cs336_alignment.rollout.transformers_engine import MAX_BATCH_SIZE
from cs336_alignment.run_folder import UsageError
from cs336_alignment.training.learner import OptimizerConfig
from cs336_alignment.training.memory import (
    GIB,
    MemoryPrediction,
    ModelShape,
    engine_bytes,
    memory_advice,
    memory_table,
    predict_memory,
)
from cs336_alignment.training.session import RunConfig, reading_model

ASSUMED_GPU_GIB = 40.0


@runtime_checkable
class TrainingConfig(Protocol):
    """What every algorithm's options have."""

    @property
    def run(self) -> RunConfig: ...

    @property
    def optimizer(self) -> OptimizerConfig: ...

    @property
    def sequences_per_step(self) -> int:
        """Examples of an optimiser step."""
        ...

    def longest_example(self) -> int:
        """Tokens of the longest prompt with its response that is trained on."""
        ...

    @property
    def shorten(self) -> str:
        """What makes it shorter."""
        ...

    @property
    def keeps_reference(self) -> bool:
        """Whether a copy of the initial policy stays in memory."""
        ...


def check_memory(config: TrainingConfig) -> None:
    """Print the predicted memory of each GPU.

    Raises:
        UsageError: the run would not fit; the message names the option to change.
    """
    longest = config.longest_example()
    prediction = predict_run(config, longest)
    if os.environ.get("RANK", "0") == "0":
        if not torch.cuda.is_available():
            print(f"there is no GPU here: planned for one of {prediction.gpu / GIB:g} GiB (--gpu-memory-gib)")
        print(memory_table(prediction), flush=True)
    advice = memory_advice(prediction, longest, config.run.activation_checkpointing, config.shorten)
    if advice:
        raise UsageError(f"the run would not fit into the GPU's memory: {advice}")


def predict_run(config: TrainingConfig, longest: int) -> MemoryPrediction:
    """The memory of a run on GPUs, with as many ranks as the launcher started. The microbatch is the longest there can
    be, of examples of `longest` tokens: prompts that share a row are not counted as shared."""
    run, optimizer = config.run, config.optimizer
    with reading_model(run.model):
        shape = ModelShape.from_config(AutoConfig.from_pretrained(run.model))
    gpu = _gpu_bytes(run)
    element = 4 if run.dtype == "float32" else 2
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    if optimizer.token_budget is None:
        row_tokens = -(-config.sequences_per_step // optimizer.gradient_accumulation_steps) * longest
    else:
        row_tokens = max(optimizer.token_budget, longest)
    if run.engine == "transformers":
        engine = engine_bytes(shape, run.engine_batch_size or MAX_BATCH_SIZE, run.longest_rollout, element)
        engine_needs = engine_bytes(shape, 1, run.longest_rollout, element)
    else:
        engine = int(run.gpu_memory_utilization * gpu)
        engine_needs = engine_bytes(shape, 1, shape.max_positions, element)
    return predict_memory(
        shape,
        gpu=gpu,
        row_tokens=row_tokens,
        longest=longest,
        compute_bytes=element,
        checkpointing=run.activation_checkpointing,
        ranks=ranks,
        sharded=ranks > 1 and run.sharding == "fsdp2",  # one rank alone holds everything
        keep_reference=config.keeps_reference,
        engine=engine,
        engine_needs=engine_needs,
    )


def _gpu_bytes(run: RunConfig) -> int:
    """Of the smallest GPU, where several are visible."""
    if run.gpu_memory_gib is not None:
        return int(run.gpu_memory_gib * GIB)
    if not torch.cuda.is_available():
        return int(ASSUMED_GPU_GIB * GIB)
    return min(torch.cuda.get_device_properties(device).total_memory for device in range(torch.cuda.device_count()))
