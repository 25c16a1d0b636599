"""Checkpoints: all that a run needs to go on as if it had never stopped.

    checkpoints/step_N/  model.safetensors, config.json, tokenizer files   read by `from_pretrained` and by vLLM
                         optimizer.pt                                      moments, and the random states of every rank
                         progress.json                                     the loop's own counters

A checkpoint is written beside its place and renamed when it is whole, so one that is there can be used. What a run
draws (questions, rollouts, batches) is derived from its seed and its counters: these are its place in the data.
"""

import os
import random
import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._pytree import tree_map_only

from cs336_alignment.run_folder import read_json, write_json
from cs336_alignment.training.learner import Learner


@dataclass
class Progress:
    """How far a run has come.

    Attributes:
        step: steps of the algorithm that are done.
        optimizer_steps: updates of the policy; the version that rollout engines are given.
        questions_used: of the endless stream of shuffled training questions.
        best_accuracy: of all evaluations so far.
        wandb_id: of the run that wandb mirrors.
    """

    step: int = 0
    optimizer_steps: int = 0
    questions_used: int = 0
    best_accuracy: float | None = None
    wandb_id: str | None = None


class Checkpoints:
    """The checkpoints of one run folder."""

    def __init__(self, run_folder: Path, keep: int = 2) -> None:
        """Args:
        run_folder: the run's.
        keep: how many of the latest to keep.
        """
        self._folder = run_folder / "checkpoints"
        self._keep = keep

    def latest(self) -> Path | None:
        """The checkpoint of the highest step."""
        found = self._all()
        return found[-1] if found else None

    def save(self, learner: Learner, progress: Progress) -> Path:
        """Write a checkpoint; every rank calls this. Older ones beyond `keep` are removed afterwards."""
        target = self._folder / f"step_{progress.step}"
        random_states = learner.ranks.gather([_random_state()])
        is_main = learner.ranks.is_main

        def whole(tensor: torch.Tensor) -> torch.Tensor | None:
            """Put together on every rank, one at a time; kept on the main rank's CPU alone."""
            together = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
            return together.cpu() if is_main else None

        weights = {name: kept for name, tensor in learner.policy.weights() if (kept := whole(tensor)) is not None}
        optimizer = tree_map_only(torch.Tensor, whole, learner.optimizer.state_dict())
        if is_main:
            for left_by_a_kill in self._folder.glob("step_*.partial"):
                shutil.rmtree(left_by_a_kill)
            partial = target.with_name(target.name + ".partial")
            partial.mkdir(parents=True)
            learner.policy.save(partial, weights)
            torch.save({"optimizer": optimizer, "random_states": random_states}, partial / "optimizer.pt")
            write_json(partial / "progress.json", asdict(progress))
            _sync(partial)
            shutil.rmtree(target, ignore_errors=True)
            partial.rename(target)
            for old in self._all()[: -self._keep]:
                shutil.rmtree(old)
        learner.ranks.wait()
        return target

    def load(self, path: Path, learner: Learner) -> Progress:
        """Put a checkpoint into a learner that was made as the one that wrote it, and return how far it was."""
        # Mapped, not read: every rank needs its own part alone.
        stored = torch.load(path / "optimizer.pt", map_location="cpu", mmap=True, weights_only=False)
        learner.policy.load_weights(load_file(path / "model.safetensors"))
        _load_optimizer(learner, stored["optimizer"])
        if learner.ranks.index < len(stored["random_states"]):
            _restore_random_state(stored["random_states"][learner.ranks.index])
        progress = Progress(**read_json(path / "progress.json"))
        learner.steps_taken = progress.optimizer_steps
        return progress

    def _all(self) -> list[Path]:
        numbered = [(re.fullmatch(r"step_(\d+)", path.name), path) for path in self._folder.glob("step_*")]
        return [path for _, path in sorted((int(match[1]), path) for match, path in numbered if match)]


def _load_optimizer(learner: Learner, state: dict[str, Any]) -> None:
    """The moments, cut up as their parameters are."""
    parameters = list(learner.policy.parameters())
    for index, moments in state["state"].items():
        parameter = parameters[index]
        if isinstance(parameter, DTensor):
            for name, moment in moments.items():
                if moment.shape == parameter.shape:
                    moments[name] = distribute_tensor(moment, parameter.device_mesh, parameter.placements)
    learner.optimizer.load_state_dict(state)


def _random_state() -> dict[str, Any]:
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(),  # noqa: NPY002 (the state that libraries draw from)
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def _restore_random_state(state: dict[str, Any]) -> None:
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def _sync(folder: Path) -> None:
    """Bring every file of a folder, and the folder, to the disk."""
    for path in [*folder.iterdir(), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
