"""vLLM's second model runner on a CPU: put this folder on PYTHONPATH.

vLLM takes it wherever Triton works, so on every CUDA machine, and takes the first on a CPU: tests without this never
see the code that GPUs run. Triton has an interpreter, and says that it works where a driver says so; this one is a
stand-in, which every process of a run must have before it imports vllm.
"""

import os
from types import SimpleNamespace
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"
os.environ["TORCH_COMPILE_DISABLE"] = "1"  # Inductor would ask the stand-in for a compiler

import torch
from triton import backends
from triton.backends.compiler import GPUTarget


class InterpretingDriver:
    """What vLLM and Triton ask a driver, answered for a CPU."""

    @staticmethod
    def is_active():
        return True

    def get_current_target(self):
        return GPUTarget("cpu", 0, 1)

    def get_active_torch_device(self):
        return torch.device("cpu")

    def get_device_interface(self):
        return torch.cpu


stand_in: Any = SimpleNamespace(driver=InterpretingDriver, compiler=None)
backends.backends["cpu"] = stand_in
