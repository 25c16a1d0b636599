"""What a training run leaves behind, mirrored to wandb where that is wanted.

    run.json                 config, commit, versions, hardware; one session an (interrupted) start
    metrics.jsonl            a line a training step or evaluation
    completions/*.jsonl      what the policy wrote, graded
    checkpoints/step_N/      see checkpoint.py

A line of metrics has `kind` ("train" or "eval"), `step`, the metrics, and `timing`: all that depends on the machine's
speed. But for `timing`, a run that was interrupted and resumed leaves the same lines as one that was not.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from hashlib import sha256
from pathlib import Path
from secrets import token_hex
from time import monotonic
from typing import Any, Literal

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from cs336_alignment import environment
from cs336_alignment.ranks import Ranks
from cs336_alignment.run_folder import (
    append_json_lines,
    read_complete_json_lines,
    record_session,
    write_json_lines,
)

WandbMode = Literal["offline", "online", "disabled"]

METRICS = "metrics.jsonl"


def settings_of(config: Any, data: Sequence[Path]) -> dict[str, Any]:
    """All that a run was asked to do: the fields of its config, a dataclass, and the hashes of the files it reads."""
    hashes = {str(path): sha256(path.read_bytes()).hexdigest() for path in data if path.exists()}
    return {**asdict(config), "data_sha256": hashes}


class RunRecord:
    """The record of one training run. Every rank holds one; the main rank's writes."""

    def __init__(
        self,
        folder: Path,
        settings: dict[str, Any],
        protocol: Any,
        ranks: Ranks,
        *,
        steps: int,
        job_type: str,
        start_step: int | None = None,
        wandb_mode: WandbMode = "offline",
        wandb_id: str | None = None,
        in_pieces: Mapping[str, Any] | None = None,
    ) -> None:
        """Begin a record, or go on with one.

        Args:
            folder: the run folder.
            settings: of the run, as `settings_of` puts them; a resumed run's were checked against its beginning.
            protocol: what the run's figures depend on, beside the config.
            ranks: this process among its peers.
            steps: how many the run will take, for the progress bar.
            job_type: the run's kind, for wandb.
            start_step: steps that a checkpoint holds: later lines of an earlier session are cut. None without one.
            wandb_mode: offline keeps wandb's files in the run folder, to be synced by hand.
            wandb_id: of the wandb run to go on with.
            in_pieces: how this session fits the run into its GPUs' memory, as chosen or given.
        """
        self.folder = folder
        self.wandb_id = wandb_id
        self._main = ranks.is_main
        self._wandb: Any = None
        self._console = Console(stderr=True)
        self._began = monotonic()
        if not self._main:
            return
        session = {**environment.describe(), "ranks": ranks.count, "start_step": start_step, **(in_pieces or {})}
        record_session(folder, settings, protocol, session)
        done = -1 if start_step is None else start_step
        rows = [row for row in read_complete_json_lines(folder / METRICS) if row["step"] <= done]
        self._cut(rows, done)
        self._began -= max((row["timing"]["wall_seconds"] for row in rows), default=0.0)
        if wandb_mode != "disabled":
            self._mirror(lambda: self._open_wandb(wandb_mode, job_type, settings))
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._progress.add_task("step", total=steps, completed=start_step or 0)
        self._progress.start()

    def log(self, kind: Literal["train", "eval"], step: int, metrics: dict[str, Any], timing: dict[str, float]) -> None:
        """Write a line of metrics."""
        if not self._main:
            return
        timing = {**timing, "wall_seconds": monotonic() - self._began}
        append_json_lines(self.folder / METRICS, [{"kind": kind, "step": step, **metrics, "timing": timing}])
        if self._wandb is not None:
            numbers = {name: value for name, value in {**metrics, **timing}.items() if isinstance(value, int | float)}
            row = {f"{kind}_step": step, **{f"{kind}/{name}": value for name, value in numbers.items()}}
            self._mirror(lambda: self._wandb.log(row))
        self._show(kind, step, metrics, timing)

    def completions(self, name: str, rows: Iterable[Any]) -> None:
        """Write `completions/<name>.jsonl`: dataclasses or dicts, one a line."""
        if self._main:
            lines = [asdict(row) if is_dataclass(row) else row for row in rows]  # type: ignore[call-overload]
            write_json_lines(self.folder / "completions" / f"{name}.jsonl", lines)

    def warn(self, message: str) -> None:
        """Say something to the person at the terminal, or in the job's log."""
        if self._main:
            self._console.print(f"warning: {message}", style="yellow", markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        if self._main:
            self._progress.stop()
            if self._wandb is not None:
                self._mirror(self._wandb.finish)

    def __enter__(self) -> "RunRecord":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _cut(self, rows: list[dict[str, Any]], done: int) -> None:
        """Drop what an earlier session wrote after the checkpoint that this one starts from."""
        if (self.folder / METRICS).exists():
            write_json_lines(self.folder / METRICS, rows)
        for path in (self.folder / "completions").glob("*_step_*.jsonl"):
            if int(path.stem.rpartition("_")[2]) > done:
                path.unlink()

    def _mirror(self, call: Callable[[], Any]) -> None:
        """wandb mirrors the run, and must not end it: missing, without a network or on a full disk, it is left out."""
        try:
            call()
        except Exception as error:
            self._wandb = None
            self.warn(f"wandb is left out from here on: {type(error).__name__}: {error}")

    def _open_wandb(self, mode: WandbMode, job_type: str, settings: dict[str, Any]) -> None:
        import wandb

        self.wandb_id = self.wandb_id or token_hex(4)
        self._wandb = wandb.init(
            project="cs336-alignment",
            name=self.folder.name,
            job_type=job_type,
            id=self.wandb_id,
            resume="allow",
            dir=str(self.folder),
            mode=mode,
            config=settings,
        )
        for kind in ("train", "eval"):
            self._wandb.define_metric(f"{kind}_step")
            self._wandb.define_metric(f"{kind}/*", step_metric=f"{kind}_step")

    def _show(self, kind: str, step: int, metrics: dict[str, Any], timing: dict[str, float]) -> None:
        shown = ("reward", "accuracy", "format_reward", "format_rate", "loss", "entropy", "mean_length", "grad_norm")
        numbers = "  ".join(
            f"{name} {metrics[name]:.4g}" for name in shown if isinstance(metrics.get(name), int | float)
        )
        line = f"{kind} {step}  {numbers}  {timing['wall_seconds']:.0f} s"
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)
        if kind == "train":
            self._progress.update(self._task, completed=step)
