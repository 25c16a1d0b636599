"""`cs336-check-node`: proves a machine before the first job, in about five minutes.

    uv run python scripts/check_node.py --output /scratch/me/runs --model data/models/qwen2.5-math-1.5b
    uv run python scripts/check_node.py --only attention disk
    uv run python scripts/check_node.py --list

On the node that jobs will run on, with all of its GPUs; on a laptop it checks what a CPU can show, and says what it
skipped. docs/check-node.md says what each check does and what its failure means. The exit status is 0 where nothing
failed.
"""

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from time import monotonic

import torch
import tyro
from rich.console import Console
from rich.table import Table

from cs336_alignment import environment
from cs336_alignment.node_check import devices, learning, machine
from cs336_alignment.node_check.launch import run_check
from cs336_alignment.node_check.outcome import Check, Figures, Outcome, Setting
from cs336_alignment.rollout.selection import GPU_INSTALL
from cs336_alignment.run_folder import write_json

REPORT = "check_node.json"
_NCCL = "NCCL_DEBUG=INFO cs336-check-node --only all-reduce; NCCL_P2P_DISABLE=1 gets around a faulty link between GPUs"
_ENGINE = f"read the log in OUTPUT/check_node; {GPU_INSTALL}"
_REINSTALL = "uv sync --extra gpu --reinstall-package torch"

CHECKS = (
    Check("software", "driver, CUDA, C library and torch agree", machine.software, GPU_INSTALL),
    Check(
        name="gpus",
        about="memory, links, CUDA_VISIBLE_DEVICES",
        run=machine.gpus,
        to_type="nvidia-smi; nvidia-smi topo -m",
        skip=machine.without_gpus,
    ),
    Check("disk", "room for checkpoints in the output folder, and its speed", machine.disk, "df -h OUTPUT; quota -s"),
    Check(
        name="all-reduce",
        about="the ranks add numbers up; bandwidth",
        run=devices.all_reduce,
        to_type=_NCCL,
        limit_seconds=180,
        skip=devices.without_peers,
    ),
    Check(
        name="attention",
        about="packed attention and its gradients against a dense mask, the kernel against float32",
        run=devices.attention,
        to_type=_REINSTALL,
        limit_seconds=180,
        one_process_on_cpu=True,
    ),
    Check(
        name="output-head",
        about="log-probs and gradients of the chunked head against float64",
        run=devices.output_head,
        to_type=_REINSTALL,
        limit_seconds=240,
        one_process_on_cpu=True,
    ),
    Check(
        name="engine",
        about="start, sample, sleep, wake, two syncs with proof",
        run=learning.engine,
        to_type=_ENGINE,
        limit_seconds=420,
        skip=learning.without_vllm,
    ),
    Check(
        name="engine-tensor-parallel",
        about="the same, an engine spread over GPUs",
        run=learning.engine_tensor_parallel,
        to_type=f"--tensor-parallel-size 1 in every command, which does without; {_NCCL}",
        limit_seconds=420,
        skip=learning.without_groups,
    ),
    Check(
        name="grpo-small",
        about="GRPO steps and a checkpoint, small policy",
        run=learning.grpo_small,
        to_type=_ENGINE,
        limit_seconds=420,
    ),
    Check(
        name="grpo-model",
        about="the same with --model, on GPUs at the sizes of a run",
        run=learning.grpo_model,
        to_type=_ENGINE,
        limit_seconds=900,
        skip=learning.without_model,
    ),
)


@dataclass(frozen=True)
class NodeCheckConfig:
    """Prove a machine before the first job."""

    output: Path = Path("runs/check_node")
    """Folder that jobs will write to, on the disk that they will use; check_node.json and logs are written to it."""
    model: str | None = None
    """Hugging Face directory or hub name to check as well: its output head, its memory, its speed."""
    only: tuple[str, ...] = ()
    """Names of checks; default: all."""
    list: bool = False
    """Print the checks and end."""


def main() -> None:
    config = tyro.cli(NodeCheckConfig, description=__doc__)
    console = Console(width=None if sys.stdout.isatty() else 120)
    unknown = set(config.only) - {check.name for check in CHECKS}
    if unknown:
        print(f"error: --only: there is no check {', '.join(sorted(unknown))}; --list names them", file=sys.stderr)
        sys.exit(2)
    if config.list:
        for check in CHECKS:
            console.print(f"{check.name:<24}{check.about}", highlight=False)
        return
    sys.exit(0 if check_node(config, console) else 1)


def check_node(config: NodeCheckConfig, console: Console) -> bool:
    """Run the checks, print the table, write the report; True where none failed."""
    began = monotonic()
    setting = _setting(config)
    chosen = [check for check in CHECKS if check.name in config.only or not config.only]
    outcomes: list[Outcome] = []
    seconds, unwritten = 0.0, None
    for check in chosen:
        blocked = _blocked(check, outcomes)
        if blocked is None:
            console.print(f"{check.name}: {check.about} ...", highlight=False)
        outcomes.append(blocked or run_check(check, setting))
        # After each check: a job that its walltime ends in the middle of one has the others' figures.
        seconds = round(monotonic() - began, 1)
        unwritten = _write(config, outcomes, seconds, complete=check is chosen[-1])
    console.print(as_table(outcomes))
    for outcome in outcomes:
        if outcome.status == "fail":
            failure = f"{outcome.name} failed: {outcome.message}\n    type: {outcome.to_type or 'see above'}\n"
            console.print(failure, markup=False, highlight=False, soft_wrap=True)
    console.print(_sum_up(outcomes, seconds), highlight=False)
    said = f"report: {config.output / REPORT}" if unwritten is None else f"the report cannot be written: {unwritten}"
    console.print(said, markup=False, highlight=False, soft_wrap=True)
    return _passed(outcomes)


def _passed(outcomes: Sequence[Outcome]) -> bool:
    return not any(outcome.status == "fail" for outcome in outcomes)


def _write(config: NodeCheckConfig, outcomes: Sequence[Outcome], seconds: float, complete: bool) -> OSError | None:
    """Write the report; the error where that is not possible, as on a full disk, which a check says too."""
    report = {"complete": complete, "passed": complete and _passed(outcomes), "seconds": seconds}
    report |= {"config": asdict(config), "machine": environment.describe()}
    try:
        write_json(config.output / REPORT, {**report, "checks": [asdict(outcome) for outcome in outcomes]})
    except OSError as error:
        return error
    return None


def _setting(config: NodeCheckConfig) -> Setting:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    # UUIDs, as PBS gives them, to indices: before torch counts GPUs, and for all processes of the checks.
    with suppress(ValueError):  # a GPU of another machine, which the check of the GPUs names
        environment.use_device_indices()
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return Setting(config.output.absolute(), config.model, gpus, visible)


def _blocked(check: Check, outcomes: Sequence[Outcome]) -> Outcome | None:
    """Without a sound driver the GPUs cannot be seen, and what the other checks said would be a CPU's."""
    if check.limit_seconds is None or not any(each.name == "software" and each.status == "fail" for each in outcomes):
        return None
    return Outcome(check.name, "skipped", "the software check failed: mend that first")


def as_table(outcomes: Sequence[Outcome]) -> Table:
    """A row a check: its status, what was measured or why it was not, its seconds."""
    table = Table("check", "status", "measured", "seconds", show_lines=True)
    colours = {"pass": "green", "fail": "red", "skipped": "yellow"}
    for outcome in outcomes:
        colour = colours[outcome.status]
        said = outcome.message if outcome.status == "skipped" else _in_words(outcome.figures)
        table.add_row(outcome.name, f"[{colour}]{outcome.status}[/]", said, f"{outcome.seconds:.1f}")
    return table


def _in_words(figures: Figures) -> str:
    def shown(value: object) -> str:
        if isinstance(value, list):
            return ", ".join(map(shown, value))
        return f"{value:.3g}" if isinstance(value, float) and abs(value) < 1000 else str(value)

    return "; ".join(f"{name.replace('_', ' ')} {shown(value)}" for name, value in figures.items())


def _sum_up(outcomes: Sequence[Outcome], seconds: float) -> str:
    counts = {status: sum(each.status == status for each in outcomes) for status in ("pass", "fail", "skipped")}
    return f"{counts['pass']} passed, {counts['fail']} failed, {counts['skipped']} skipped, in {seconds:.0f} s"


if __name__ == "__main__":
    main()
