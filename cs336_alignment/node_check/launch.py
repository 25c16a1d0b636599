"""A check in processes of its own: a fault in one, or an engine that hangs, is that check's failure and no other's."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from time import monotonic
from typing import Any

from cs336_alignment.node_check.outcome import Check, CheckFailedError, Figures, Outcome, Setting
from cs336_alignment.run_folder import read_json

LAST_LINES = 8
GRACE_SECONDS = 20
"""For torchrun to end its processes after a time limit, before it kills them."""
_KILLED = re.compile(r"failed \(exitcode: -(\d+)\) local_rank: (\d+)")
"""What torchrun says of the first process that failed, where it was killed."""
_TORCHRUN = ("torch/distributed/elastic/", "torch.distributed.elastic")


def run_check(check: Check, setting: Setting) -> Outcome:
    """Whatever comes of a check: nothing that goes wrong in it ends the others."""
    began = monotonic()

    def outcome(status: Any, message: str = "", to_type: str = "", figures: Figures | None = None) -> Outcome:
        seconds = round(monotonic() - began, 1)
        return Outcome(check.name, status, message, to_type, figures or {}, seconds)

    try:
        reason = check.skip(setting)
        if reason is not None:
            return outcome("skipped", reason)
        if check.limit_seconds is None:
            return outcome("pass", figures=check.run(setting))
        ranks = 1 if check.one_process_on_cpu and not setting.gpus else setting.ranks
        return outcome("pass", figures=run_on_ranks(check.name, check.run, setting, ranks, check.limit_seconds))
    except CheckFailedError as error:
        return outcome("fail", str(error), error.to_type or check.to_type, error.figures)
    except Exception as error:
        return outcome("fail", f"{type(error).__name__}: {error}", check.to_type)


def run_on_ranks(
    name: str, function: Callable[[Setting], Figures], setting: Setting, ranks: int, limit_seconds: float
) -> Figures:
    """Run a check's function in `ranks` fresh processes under torchrun; the log stays in the work folder.

    Raises:
        CheckFailedError: as the first rank has it that raised it; or a process died, or the time was up, with the last
            lines that were printed.
    """
    setting.work.mkdir(parents=True, exist_ok=True)
    log, answers = setting.work / f"{name}.log", setting.work / f"{name}.answer"
    shutil.rmtree(setting.runs, ignore_errors=True)
    for old in setting.work.glob(f"{answers.name}.*"):
        old.unlink()
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    told = json.dumps({**asdict(setting), "output": str(setting.output)})
    command += ["-m", "cs336_alignment.node_check.worker", f"{function.__module__}:{function.__name__}"]
    environment = {**os.environ, "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(GRACE_SECONDS), "PYTHONUNBUFFERED": "1"}
    with log.open("w") as file:
        process = subprocess.Popen([*command, str(answers), told], stdout=file, stderr=file, env=environment)
        try:
            status = process.wait(limit_seconds)
        except subprocess.TimeoutExpired:
            raise CheckFailedError(f"not done after {limit_seconds:g} s; the last lines:\n{_end_of(log)}") from None
        finally:
            _stop(process)
            shutil.rmtree(setting.runs, ignore_errors=True)  # checkpoints are large
    return _answer(answers, status, log)


def _answer(answers: Path, status: int, log: Path) -> Figures:
    """What the ranks wrote. Where one raises, the others end without a word, or raise the same; where one is killed,
    what the others say is that it was gone."""
    killed = _KILLED.search(log.read_text(errors="replace"))
    if killed:
        raise CheckFailedError(
            f"rank {killed[2]} was killed by signal {killed[1]}; the ranks' last lines:\n{_end_of(log)}"
        )
    given = [read_json(path) for path in sorted(answers.parent.glob(f"{answers.name}.*")) if path.suffix != ".partial"]
    for answer in given:
        if "problem" in answer:
            raise CheckFailedError(answer["problem"], answer["to_type"], answer["figures"])
    if status or not given:
        raise CheckFailedError(f"a process ended without an answer; the last lines:\n{_end_of(log)}")
    return given[0]["figures"]


def _end_of(log: Path) -> str:
    """The last lines of the processes themselves, without torchrun's."""
    lines = [line.rstrip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    end = next((place for place, line in enumerate(lines) if _of_torchrun(line)), len(lines))
    return "\n".join(lines[max(0, end - LAST_LINES) : end])


def _of_torchrun(line: str) -> bool:
    return any(mark in line for mark in _TORCHRUN)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """torchrun ends its processes when it is told to, and then itself."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(2 * GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
