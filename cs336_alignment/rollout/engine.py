"""What every rollout engine does: prompts in, sampled completions out."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from torch import Tensor


@dataclass(frozen=True)
class Sampling:
    """How to sample. The defaults are the handout's for the GSM8K baseline.

    Attributes:
        temperature: of the softmax; 0 is greedy.
        top_p: sample from the smallest set of tokens with at least this probability; 1 keeps all.
        max_tokens: at most so many new tokens.
        min_tokens: EOS cannot be sampled, and stop strings do not count, before so many.
        stop: a completion ends with the first of these strings that appears; the string stays in the text.
        n: completions a prompt, all different draws.
        seed: draws depend on it, on the prompt's position and on nothing else.
        first_position: of the call's first prompt, where a call is a part of a larger batch: shared out over ranks, a
            batch gives the draws that it would give in one call.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 1024
    min_tokens: int = 0
    stop: tuple[str, ...] = ("</answer>",)
    n: int = 1
    seed: int = 0
    first_position: int = 0

    def __post_init__(self) -> None:
        checks = {
            "temperature must not be negative": self.temperature >= 0,
            "top_p must be in (0, 1]": 0 < self.top_p <= 1,
            "max_tokens must be at least 1": self.max_tokens >= 1,
            "min_tokens must be between 0 and max_tokens": 0 <= self.min_tokens <= self.max_tokens,
            "stop strings must not be empty": all(self.stop),
            "n must be at least 1": self.n >= 1,
            "greedy decoding gives one completion: n must be 1 at temperature 0": self.temperature > 0 or self.n == 1,
            "seed must not be negative": self.seed >= 0,
            "first_position must not be negative": self.first_position >= 0,
        }
        for requirement, holds in checks.items():
            if not holds:
                raise ValueError(f"{requirement}: {self}")


@dataclass(frozen=True)
class Completion:
    """One sampled response.

    Attributes:
        text: decoded, special tokens left out, cut after the stop string where one ended it.
        token_ids: what was sampled, EOS included. The last token may reach past the stop string: train on these ids,
            grade the text.
        log_probs: of each token under the distribution it was drawn from (temperature, padded vocabulary, min_tokens
            and top_p applied; at temperature 0 that of temperature 1), in nats.
        finish_reason: "stop" for EOS or a stop string, "length" for max_tokens or the model's last position.
    """

    text: str
    token_ids: tuple[int, ...]
    log_probs: tuple[float, ...]
    finish_reason: Literal["stop", "length"]


@runtime_checkable
class RolloutEngine(Protocol):
    """A policy that can be sampled from, and given new weights. Use it as a context manager."""

    @property
    def policy_version(self) -> int:
        """What the last `load_policy` was given; 0 before it."""
        ...

    @property
    def description(self) -> dict[str, str | int]:
        """Engine, version and dtype, for the evaluation protocol."""
        ...

    def generate(self, prompts: Sequence[str], sampling: Sampling) -> list[list[Completion]]:
        """`sampling.n` completions for each prompt, in the order of the prompts.

        Raises:
            ValueError: a prompt leaves no room for a token; the message gives its position and length.
        """
        ...

    def load_policy(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Take new weights, and drop whatever was computed from the old ones.

        Args:
            weights: the items of the trainer's `state_dict()`. Not `named_parameters()`, which leaves out a tied head.
            version: the trainer's count of optimiser steps.
        """
        ...

    def held_weights(self) -> dict[str, float]:
        """Sums of the weights, read where the engine keeps them: by name those that it keeps as the trainer does, each
        summed in float64. At least one; a kernel's own packing may leave out many."""
        ...

    def sleep(self) -> None:
        """Give the accelerator's memory back until `wake`."""
        ...

    def wake(self) -> None: ...

    def close(self) -> None: ...

    def __enter__(self) -> "RolloutEngine": ...

    def __exit__(self, *exception: object) -> None: ...


def derive_seed(seed: int, *path: int) -> int:
    """A seed for one part of a run, such as one prompt of a call: well spread, the same on every machine."""
    return int(np.random.SeedSequence((seed, *path)).generate_state(1, np.uint64)[0] >> np.uint64(16))


def weight_sum(weight: Tensor) -> float:
    """A checksum of a weight that does not depend on where or how it lies: its sum in float64."""
    return weight.detach().double().sum().item()


def check_prompt_lengths(lengths: Sequence[int], max_positions: int) -> None:
    """Every prompt must leave room for at least one token.

    Raises:
        ValueError: naming the first prompt that does not.
    """
    for position, length in enumerate(lengths):
        if length >= max_positions:
            raise ValueError(f"prompt {position} has {length} tokens; the model has {max_positions} positions in all")
        if length == 0:
            raise ValueError(f"prompt {position} has no tokens")
