"""From the options of a run to the memory it takes, and what is chosen where they leave it open.

Three values are chosen together, so that every phase fits beside the reserve:

    --token-budget               4,096 tokens (or the longest example; or all that a GPU has to do in a step): longer
                                 rows keep a GPU hardly busier, and take memory that a wrong prediction would want
    --activation-checkpointing   no, where that budget fits without it; else yes, for a third more compute
    --gpu-memory-utilization     what vLLM needs to sample a GPU's part of the rollout batch at once, and no more;
                                 less, where so much does not fit beside the trainer

They do not depend on each other: the engine sleeps while the policy trains. What the options do set stands, and the
rest is chosen around it. The arithmetic is that of memory.py and memory_phases.py.
"""

import math
import os
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch

from cs336_alignment.rollout.proof import PROOF_TOKENS
from cs336_alignment.rollout.transformers_engine import MAX_BATCH_SIZE
from cs336_alignment.training.learner import TOKEN_BUDGET, OptimizerConfig
from cs336_alignment.training.memory import (
    GIB,
    Arrangement,
    Engine,
    ModelShape,
    engine_cache_bytes,
    engine_work_bytes,
)
from cs336_alignment.training.memory_phases import MemoryPrediction, ProofSize
from cs336_alignment.training.session import PROMPT_TOKENS, PROOF_PROMPTS, RunConfig

ASSUMED_GPU_GIB = 39.4
"""What an A100-40GB reports."""
VLLM_SEQUENCES = 256
"""That VLLMEngine runs at once, unless told otherwise."""
LEAST_SHARE = 0.01
"""Where nothing is left for an engine, so that the prediction can say by how much it does not fit."""
WHOLE_SHARE = 0.95
"""The most that vLLM is given, however small the trainer."""


@runtime_checkable
class TrainingConfig(Protocol):
    """What every algorithm's options have; they are dataclasses."""

    @property
    def run(self) -> RunConfig: ...

    @property
    def optimizer(self) -> OptimizerConfig: ...

    @property
    def sequences_per_step(self) -> int:
        """Examples of an optimiser step."""
        ...

    @property
    def sequences_sampled(self) -> int:
        """Responses that all engines together are asked for at once."""
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


Config = TypeVar("Config", bound=TrainingConfig)


def choose(config: Config, shape: ModelShape, longest: int) -> Config:
    """The options with what they leave open, by the rule of the module's page; a run may not fit all the same."""
    run, optimizer = config.run, config.optimizer
    by_tokens = optimizer.gradient_accumulation_steps is None and optimizer.token_budget is None
    all_there_is = -(-config.sequences_per_step // count_ranks()) * longest
    wanted = max(longest, min(TOKEN_BUDGET, all_there_is)) if by_tokens else _row_tokens(config, longest)
    tried = [False, True] if run.activation_checkpointing is None else [run.activation_checkpointing]
    candidates = [with_values(config, activation_checkpointing=checkpointing) for checkpointing in tried]
    predictions = [predict(candidate, shape, longest) for candidate in candidates]
    fitting = (at for at, prediction in enumerate(predictions) if prediction.training(wanted) <= prediction.gpu)
    taken = next(fitting, -1)
    chosen, prediction = candidates[taken], predictions[taken]
    if by_tokens:
        # Where nothing fits, the longest example, which is never cut.
        budget = max(longest, min(prediction.largest_token_budget, wanted))
        chosen = with_values(chosen, token_budget=budget)
    if run.gpu_memory_utilization is None and run.engine != "transformers":
        largest = min(WHOLE_SHARE, prediction.largest_engine_share)
        enough = _engine_for(config, shape, _sequences_at_once(config), run.longest_rollout, prediction.gpu)
        share = max(LEAST_SHARE, min(largest, _share(enough, prediction.gpu)))
        chosen = with_values(chosen, gpu_memory_utilization=share)
    return chosen


def predict(config: TrainingConfig, shape: ModelShape, longest: int) -> MemoryPrediction:
    """The memory of a run on GPUs, with as many ranks as the launcher started. The microbatch is the longest there can
    be, of examples of `longest` tokens: prompts that share a row are not counted as shared."""
    run = config.run
    responses = PROOF_PROMPTS * PROOF_TOKENS
    return MemoryPrediction(
        shape,
        Arrangement(
            compute_bytes=_element_bytes(run),
            shards=count_ranks() if run.sharding == "fsdp2" else 1,
            checkpointing=bool(run.activation_checkpointing),
            keep_reference=config.keeps_reference,
        ),
        gpu=_gpu_bytes(run),
        row_tokens=_row_tokens(config, longest),
        longest=longest,
        proof=ProofSize(PROOF_PROMPTS * PROMPT_TOKENS + responses, responses),
        engine=_engine(config, shape),
    )


def advice(config: TrainingConfig, shape: ModelShape, longest: int) -> str:
    """The least change of options with which the run fits."""
    for words, changed in _changes(config):
        chosen = choose(changed, shape, longest)
        if predict(chosen, shape, longest).fits:
            run, optimizer = chosen.run, chosen.optimizer
            return words.format(budget=optimizer.token_budget, share=run.gpu_memory_utilization)
    alone = predict(choose(config, shape, longest), shape, longest)
    smaller = "start more ranks (FSDP2 shares the policy out over them), or take a smaller model"
    if alone.training(longest) > alone.gpu >= alone.training(0):
        return f"one sequence of {longest:,} tokens is too much: {config.shorten}; or {smaller}"
    return f"what stays in memory is too much: {smaller}"


def _changes(config: Config) -> Iterator[tuple[str, Config]]:
    """Options that could be others, the cheapest change first, and at last all of them together."""
    run, optimizer = config.run, config.optimizer
    together, all_words = config, []
    single: list[tuple[str, dict[str, Any]]] = []
    if optimizer.token_budget is not None:
        single.append(("set --token-budget to {budget} or less", {"token_budget": None}))
    if optimizer.gradient_accumulation_steps is not None:
        words = "set --token-budget {budget} in place of --gradient-accumulation-steps"
        single.append((words, {"gradient_accumulation_steps": None}))
    if run.gpu_memory_utilization is not None and run.engine != "transformers":
        single.append(("set --gpu-memory-utilization {share:.2f}", {"gpu_memory_utilization": None}))
    if run.activation_checkpointing is False:
        single.append(("set --activation-checkpointing True", {"activation_checkpointing": None}))
    if count_ranks() > 1 and run.sharding != "fsdp2":
        single.append(("set --sharding fsdp2", {"sharding": "fsdp2"}))
    if run.dtype == "float32":
        single.append(("set --dtype bfloat16", {"dtype": "bfloat16"}))
    for size in (2, 4):
        if run.tensor_parallel_size < size and count_ranks() % size == 0 and run.engine != "transformers":
            single.append((f"set --tensor-parallel-size {size}", {"tensor_parallel_size": size}))
    for words, values in single:
        yield words, with_values(config, **values)
        together = with_values(together, **values)
        all_words.append(words)
    if len(single) > 1:
        yield "; ".join(all_words), together


def with_values(config: Config, **values: Any) -> Config:
    """The options with other values for some of RunConfig's or OptimizerConfig's."""
    of_run = {name: value for name, value in values.items() if hasattr(config.run, name)}
    others = {name: value for name, value in values.items() if name not in of_run}
    changed: Any = config
    return replace(changed, run=replace(config.run, **of_run), optimizer=replace(config.optimizer, **others))


def _row_tokens(config: TrainingConfig, longest: int) -> int:
    """Of the largest microbatch; an example longer than the budget runs alone."""
    accumulation = config.optimizer.gradient_accumulation_steps
    if accumulation is not None:
        return -(-config.sequences_per_step // accumulation) * longest
    return max(config.optimizer.token_budget or TOKEN_BUDGET, longest)


def _engine(config: TrainingConfig, shape: ModelShape) -> Engine:
    """The rollout engine with the share that the options give it; without one, with no cache."""
    run, gpu = config.run, _gpu_bytes(config.run)
    element = _element_bytes(run)
    if run.engine == "transformers":
        weights = shape.parameters * element
        sequences = run.engine_batch_size or MAX_BATCH_SIZE
        cache = [engine_cache_bytes(shape, count, run.longest_rollout, element) for count in (1, sequences)]
        return Engine(weights, weights + cache[1], weights + cache[0], copies=0, element_bytes=element)
    return Engine(
        weights=shape.parameters * element // run.tensor_parallel_size,
        awake=int((run.gpu_memory_utilization or 0) * gpu),
        least=_engine_for(config, shape, 1, shape.max_positions, gpu),
        # vLLM lays each module's new weights out before it puts them in the old ones' place.
        copies=shape.head_parameters * element // run.tensor_parallel_size,
        element_bytes=element,
    )


def _engine_for(config: TrainingConfig, shape: ModelShape, sequences: int, positions: int, gpu: int) -> int:
    """Bytes of a vLLM engine on each GPU that holds so many sequences of so many positions."""
    run = config.run
    element, parts = _element_bytes(run), run.tensor_parallel_size
    batched_tokens = 16384 if gpu >= 70 * GIB else 8192  # vLLM's defaults
    work = engine_work_bytes(shape, batched_tokens, run.engine_batch_size or VLLM_SEQUENCES, element)
    return shape.parameters * element // parts + work + engine_cache_bytes(shape, sequences, positions, element, parts)


def _sequences_at_once(config: TrainingConfig) -> int:
    """Of one engine."""
    engines = max(1, count_ranks() // config.run.tensor_parallel_size)
    return min(config.run.engine_batch_size or VLLM_SEQUENCES, -(-config.sequences_sampled // engines))


def _share(taken: int, gpu: int) -> float:
    """Of the GPU, up to the next hundredth."""
    return math.ceil(100 * taken / gpu) / 100


def _element_bytes(run: RunConfig) -> int:
    return 4 if run.dtype == "float32" else 2


def count_ranks() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def _gpu_bytes(run: RunConfig) -> int:
    """Of the smallest GPU, where several are visible."""
    if run.gpu_memory_gib is not None:
        return int(run.gpu_memory_gib * GIB)
    if not torch.cuda.is_available():
        return int(ASSUMED_GPU_GIB * GIB)
    return min(torch.cuda.get_device_properties(device).total_memory for device in range(torch.cuda.device_count()))
