"""What a check of the machine is, what it is told, and what comes of it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Figures = dict[str, Any]
"""What a check measured, by names that carry their unit; JSON can hold it."""

WORK_FOLDER = "check_node"
"""Within the output folder."""


class CheckFailedError(Exception):
    """The machine is not fit; the message says what is wrong.

    Attributes:
        to_type: what to do about it; "" leaves that to the check's own advice.
        figures: what was measured all the same.
    """

    def __init__(self, problem: str, to_type: str = "", figures: Figures | None = None) -> None:
        super().__init__(problem)
        self.to_type = to_type
        self.figures = figures or {}


@dataclass(frozen=True)
class Setting:
    """What every check is told.

    Attributes:
        output: the folder that runs will be written to.
        model: a Hugging Face directory or hub name to check as well; None is the small policy alone.
        gpus: how many GPUs torch sees; 0 on a CPU.
        visible: CUDA_VISIBLE_DEVICES as it was found; None where it is not set.
    """

    output: Path
    model: str | None = None
    gpus: int = 0
    visible: str | None = None

    @property
    def ranks(self) -> int:
        """Processes of a check that needs several: one a GPU, or two on a CPU."""
        return self.gpus or 2

    @property
    def work(self) -> Path:
        """Where the checks' logs are."""
        return self.output / WORK_FOLDER

    @property
    def runs(self) -> Path:
        """Where a check may run training; removed when it ends."""
        return self.work / "runs"


@dataclass(frozen=True)
class Check:
    """One thing that is checked.

    Attributes:
        name: of it.
        about: what it does, in a line.
        run: does it. Returns figures, or raises CheckFailedError; another exception is a failure as well.
        to_type: what to do where it fails and does not know better.
        limit_seconds: run it in fresh processes, for so long at most; None runs it in this one.
        skip: why there is nothing to check here; None where there is. It is asked before processes are started.
        one_process_on_cpu: a single process does on a CPU, where there are no devices to go through.
    """

    name: str
    about: str
    run: Callable[[Setting], Figures]
    to_type: str
    limit_seconds: int | None = None
    skip: Callable[[Setting], str | None] = lambda _: None
    one_process_on_cpu: bool = False


@dataclass(frozen=True)
class Outcome:
    """What came of a check.

    Attributes:
        name: the check's.
        status: pass, fail or skipped.
        message: what is wrong, or why it was skipped.
        to_type: what to do about a failure.
        figures: what was measured.
        seconds: that it took.
    """

    name: str
    status: Literal["pass", "fail", "skipped"]
    message: str = ""
    to_type: str = ""
    figures: Figures = field(default_factory=dict)
    seconds: float = 0.0
