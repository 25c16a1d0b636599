"""Kill a training run again and again, resume it, and compare it bit for bit with one that was left alone.

    uv run python scripts/check_resume.py --kills 50 --output runs/check_resume

Each time the process is killed (SIGKILL) at a random moment: while it starts, samples, trains or evaluates; every third
time while it writes the first checkpoint after that moment. In the end the weights, the optimiser's state, the random
states, the run's counters, the completions and the metrics, but for their timing, must be those of the run that nobody
killed. Writes resume.json; exit status 1 where anything differs, or where no kill came after a checkpoint.
"""

import hashlib
import random
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep, time
from typing import Any, Literal

import torch
import tyro
from torch.utils._pytree import tree_flatten

from cs336_alignment import environment
from cs336_alignment.run_folder import read_complete_json_lines, read_json, write_json
from cs336_alignment.training.checkpoint import Checkpoints

ROOT = Path(__file__).resolve().parents[1]
KILLS_A_RUN = 3
"""At most; then it is left to end, and compared."""
ALGORITHMS = {
    "grpo": ("train_grpo.py", "--n-grpo-steps 6 --rollout-batch-size 32 --train-batch-size 16 --group-size 4 "
             "--loss-type grpo_clip --learning-rate 1e-3 --keep-completions-every 2 --kl-coef 0.1 --importance-cap 2 "
             "--dynamic-sampling-rounds 2"),
    "expert_iteration": ("train_expert_iteration.py", "--n-ei-steps 4 --questions-per-step 24 --batch-size 8 "
                         "--learning-rate 1e-3"),
    "sft": ("train_sft.py", "--unique-examples 64 --epochs 2 --batch-size 8 --learning-rate 1e-3"),
}  # fmt: skip
COMMON = (
    "--model data/policy --train-data data/arithmetic/train.jsonl --eval-data data/arithmetic/dev.jsonl "
    "--eval-limit 16 --eval-every 3 --checkpoint-every 2 --max-tokens 48 --token-budget 1024 --engine transformers "
    "--wandb disabled --threads 1 --resume auto"
)


@dataclass(frozen=True)
class Config:
    """Check that killed runs resume to the same bits."""

    kills: int = 5
    """How many times to kill, over as many runs as that takes."""
    algorithm: Literal["grpo", "expert_iteration", "sft"] = "grpo"
    """Which loop."""
    output: Path = Path("runs/check_resume")
    """Folder for the runs and resume.json."""
    seed: int = 0
    """Of the moments."""


def main(config: Config) -> None:
    check(config)


def check(config: Config) -> dict[str, Any]:
    """Kill and compare.

    Raises:
        SystemExit: status 1, where a resumed run differs.
    """
    rng = random.Random(config.seed)
    reference = config.output / "left_alone"
    duration = run_to_end(config, reference)
    expected = fingerprint(reference)
    kills: list[dict[str, Any]] = []
    differing: list[str] = []
    runs = 0
    while len(kills) < config.kills:
        folder = config.output / f"killed_{runs}"
        runs += 1
        for _ in range(min(KILLS_A_RUN, config.kills - len(kills))):
            seconds = duration * rng.random()
            saving = len(kills) % 3 == 2
            began = time()
            # On a busy machine all moments may come before the first checkpoint; the last then waits for one.
            last_chance = len(kills) == config.kills - 1 and not any(kill["steps_saved"] for kill in kills)
            if not killed_after(config, folder, seconds, saving, after_checkpoint=last_chance):
                break
            kills.append(
                {
                    "run": folder.name,
                    "after_seconds": round(seconds, 2),
                    "steps_saved": steps_saved(folder),
                    "left_half_a_checkpoint": half_a_checkpoint(folder, began),
                }
            )
        run_to_end(config, folder)
        found = fingerprint(folder)
        differing += [f"{folder.name}: {name}" for name in expected if found.get(name) != expected[name]]
    result = {
        "algorithm": config.algorithm,
        "seed": config.seed,
        "kills": len(kills),
        "runs": runs,
        "differing": differing,
        "moments": kills,
        "fingerprint": expected,
        "session": environment.describe(),
    }
    write_json(config.output / "resume.json", result)
    after = sum(kill["steps_saved"] > 0 for kill in kills)
    halves = sum(kill["left_half_a_checkpoint"] for kill in kills)
    print(
        f"{len(kills)} kills over {runs} runs of {config.algorithm}, {after} after a checkpoint, {halves} within one: "
        f"{len(differing)} differences"
    )
    if differing:
        sys.exit("\n".join(differing))
    if not after:
        sys.exit("no kill came after a checkpoint, so nothing was resumed: take another --seed, or more --kills")
    return result


def command(config: Config, folder: Path) -> list[str]:
    script, options = ALGORITHMS[config.algorithm]
    path = str(ROOT / "scripts" / script)
    return [sys.executable, path, *options.split(), *COMMON.split(), "--output", str(folder.resolve())]


def run_to_end(config: Config, folder: Path) -> float:
    """Run, or go on with a run, until it ends by itself; the seconds that it took."""
    began = monotonic()
    finished = subprocess.run(command(config, folder), cwd=ROOT, capture_output=True, text=True)
    if finished.returncode:
        sys.exit(f"the run in {folder} failed:\n{finished.stderr[-4000:]}")
    return monotonic() - began


def killed_after(config: Config, folder: Path, seconds: float, saving: bool, after_checkpoint: bool) -> bool:
    """Start the run, or go on with it, and kill it: at that moment, or while it writes its next checkpoint, or not
    before there is one. False where it came to its end first."""
    process = subprocess.Popen(command(config, folder), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    began = time()
    deadline = began + seconds
    while process.poll() is None:
        ready = not after_checkpoint or steps_saved(folder) > 0
        if time() > deadline and ready and (not saving or half_a_checkpoint(folder, began)):
            process.kill()
            process.wait()
            return True
        sleep(0.001)
    if process.returncode:
        sys.exit(f"the run in {folder} failed; to see why: {' '.join(command(config, folder))}")
    return False


def half_a_checkpoint(folder: Path, since: float) -> bool:
    """Whether a checkpoint lies there unfinished that was written to at `since`, in seconds of the epoch, or later."""
    with suppress(FileNotFoundError):  # it is finished just now
        return any(path.stat().st_mtime >= since for path in (folder / "checkpoints").glob("*.partial"))
    return False


def steps_saved(folder: Path) -> int:
    latest = Checkpoints(folder).latest()
    return 0 if latest is None else int(latest.name.removeprefix("step_"))


def fingerprint(folder: Path) -> dict[str, str]:
    """Digests of all that must be the same."""
    last = Checkpoints(folder).latest()
    assert last is not None, "a run that ended has a checkpoint"
    optimizer = torch.load(last / "optimizer.pt", weights_only=False)
    metrics = [
        {name: value for name, value in row.items() if name != "timing"}
        for row in read_complete_json_lines(folder / "metrics.jsonl")
    ]
    return {
        "checkpoint": last.name,
        "weights": digest([(last / "model.safetensors").read_bytes()]),
        "optimizer": digest(parts(optimizer["optimizer"])),
        "random states": digest(parts(optimizer["random_states"])),
        "progress": digest(parts(read_json(last / "progress.json"))),
        "metrics": digest(parts(metrics)),
        "completions": digest(
            part
            for path in sorted((folder / "completions").iterdir())
            for part in (path.name.encode(), path.read_bytes())
        ),
    }


def parts(tree: Any) -> Iterator[bytes]:
    """Every leaf of a nested structure as bytes, tensors to the last bit."""
    leaves, structure = tree_flatten(tree)
    yield repr(structure).encode()
    for leaf in leaves:
        yield leaf.cpu().numpy().tobytes() if isinstance(leaf, torch.Tensor) else repr(leaf).encode()


def digest(pieces: Iterable[bytes]) -> str:
    state = hashlib.sha256()
    for piece in pieces:
        state.update(piece + b"\0")
    return state.hexdigest()


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
