"""What the benchmarks of training share: variants that take turns, each run in a fresh process.

A fresh process has no warm caches, no memory that another variant left to it, and a peak of its own. The variants take
turns, round after round, so that a machine that slows down for a while slows all of them down.
"""

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

Measurement = dict[str, Any]


def take_turns(
    script: str, variants: Sequence[str], rounds: int, options: Sequence[str], scratch: Path
) -> dict[str, list[Measurement]]:
    """Run every variant once a round.

    Args:
        script: the benchmark's own file; it is started with `--variant NAME --result FILE` and the options, and writes
            one JSON object to that file.
        variants: the names.
        rounds: how often each is run.
        options: the further arguments.
        scratch: where the files go.

    Returns:
        For each variant its rounds.
    """
    measured: dict[str, list[Measurement]] = {variant: [] for variant in variants}
    for number in range(rounds):
        for variant in variants:
            path = scratch / "result.json"
            command = [sys.executable, script, "--variant", variant, "--result", str(path), *options]
            subprocess.run(command, check=True, stdout=sys.stderr)
            measured[variant].append(json.loads(path.read_text()))
            path.unlink()
            now = measured[variant][-1]
            print(
                f"round {number + 1}: {variant:32} {now['seconds']:8.2f} s, cpu {now['cpu_seconds']:8.2f} s",
                file=sys.stderr,
            )
    return measured


def command_line(arguments: argparse.Namespace, but: Sequence[str]) -> list[str]:
    """The arguments as options again, for a variant's process."""
    given = {name: value for name, value in vars(arguments).items() if name not in but}
    return [text for name, value in given.items() for text in (f"--{name.replace('_', '-')}", str(value))]


@dataclass(frozen=True)
class Times:
    """Of a variant's rounds.

    Attributes:
        least, median: seconds by the clock.
        cpu: the least processor seconds, all threads together. On a busy machine they are steadier than the clock's,
            with one thread (OMP_NUM_THREADS=1): threads that wait for each other count as working.
    """

    least: float
    median: float
    cpu: float


def times(rounds: Sequence[Measurement]) -> Times:
    by_clock = [measurement["seconds"] for measurement in rounds]
    return Times(min(by_clock), statistics.median(by_clock), min(measurement["cpu_seconds"] for measurement in rounds))


class Stopwatch:
    """Seconds by the clock and of the processor since `start`."""

    def start(self) -> "Stopwatch":
        self._clock, self._processor = time.perf_counter(), time.process_time()
        return self

    def read(self) -> Measurement:
        return {"seconds": time.perf_counter() - self._clock, "cpu_seconds": time.process_time() - self._processor}


def peak_bytes() -> int:
    """The most memory that this process has held so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def relative_difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """||found - expected|| / ||expected||."""
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def machine() -> str:
    """The machine in general terms, with its speed at the one operation that bounds all of this."""
    # Where bfloat16 is emulated a large product would take minutes.
    products = ", ".join(
        f"{name} {_gigaflops(size, dtype):.1f}"
        for name, size, dtype in (("float32", 2048, torch.float32), ("bfloat16", 512, torch.bfloat16))
    )
    return (
        f"{platform.machine()}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}, "
        f"torch {torch.__version__}; GFLOP/s of a matrix product: {products}"
    )


def _gigaflops(size: int, dtype: torch.dtype) -> float:
    left, right = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
    elapsed = []
    for _ in range(5):
        stopwatch = Stopwatch().start()
        torch.mm(left, right.T)
        elapsed.append(stopwatch.read()["seconds"])
    return 2 * size**3 / min(elapsed) / 1e9
