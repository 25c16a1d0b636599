"""Will a training command fit into the GPUs' memory, and its checkpoints onto the disk?

Asked of the options, the model's config and what SFT imitates, before weights are loaded; what the options leave open
is chosen (memory_plan.py).
"""

import os

import torch
from transformers import AutoConfig

from cs336_alignment.run_folder import UsageError
from cs336_alignment.training.disk_space import check_disk
from cs336_alignment.training.learner import TOKEN_BUDGET
from cs336_alignment.training.memory import GIB, ModelShape
from cs336_alignment.training.memory_phases import memory_table
from cs336_alignment.training.memory_plan import (
    Config,
    TrainingConfig,
    advice,
    choose,
    count_ranks,
    predict,
    with_values,
)
from cs336_alignment.training.session import reading_model


def settle(config: Config) -> Config:
    """Check the disk and, where a run is for GPUs, their memory.

    Returns:
        The options with what was chosen: nothing in them depends on this machine any more.

    Raises:
        UsageError: the run would not fit; the message names the option to change.
    """
    shape = read_shape(config.run.model)
    if os.environ.get("RANK", "0") == "0":  # the rank that writes
        check_disk(shape, config.run.output, config.run.keep_checkpoints)
    if config.run.dry_run or torch.cuda.is_available():
        return check_memory(config)
    return choose_on_cpu(config)


def check_memory(config: Config) -> Config:
    """Choose what the options leave open, and print the predicted memory of each GPU.

    Returns:
        The options with what was chosen.

    Raises:
        UsageError: the run would not fit; the message names the option to change.
    """
    shape, longest = read_shape(config.run.model), config.longest_example()
    chosen = choose(config, shape, longest)
    prediction = predict(chosen, shape, longest)
    if os.environ.get("RANK", "0") == "0":
        if not torch.cuda.is_available():
            print(
                f"there is no GPU here: planned for {count_ranks()} of {prediction.gpu / GIB:g} GiB (--gpu-memory-gib)"
            )
        print(memory_table(prediction))
        print(_choices(config, chosen), flush=True)
    if not prediction.fits:
        raise UsageError(f"the run would not fit into the GPU's memory: {advice(config, shape, longest)}")
    return chosen


def choose_on_cpu(config: Config) -> Config:
    """What the options leave open, where there is no GPU to fill: a fixed budget, and no checkpointing."""
    budget = TOKEN_BUDGET if config.optimizer.gradient_accumulation_steps is None else None
    return with_values(
        config,
        token_budget=config.optimizer.token_budget or budget,
        activation_checkpointing=bool(config.run.activation_checkpointing),
    )


def read_shape(model: str) -> ModelShape:
    """The sizes of a model, from its config alone.

    Raises:
        UsageError: it cannot be read.
    """
    with reading_model(model):
        return ModelShape.from_config(AutoConfig.from_pretrained(model))


def _choices(given: TrainingConfig, chosen: TrainingConfig) -> str:
    """What was chosen, and what the options had set already, in a line."""
    run, optimizer = chosen.run, chosen.optimizer
    values = {
        "--activation-checkpointing": (given.run.activation_checkpointing, run.activation_checkpointing),
        "--token-budget": (given.optimizer.token_budget, optimizer.token_budget),
        "--gpu-memory-utilization": (given.run.gpu_memory_utilization, run.gpu_memory_utilization),
    }
    said = [
        f"{name} {value} ({'chosen' if before is None else 'as given'})"
        for name, (before, value) in values.items()
        if value is not None
    ]
    if optimizer.gradient_accumulation_steps is not None:
        said.append(f"--gradient-accumulation-steps {optimizer.gradient_accumulation_steps} (as given)")
    return "; ".join(said)
