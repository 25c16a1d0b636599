"""What every rollout engine does: prompts in, sampled completions out."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor


class EngineError(RuntimeError):
    """What a rollout engine returns, or is asked for, cannot be right."""


class NonFiniteLogProbError(EngineError):
    """An engine returned a token whose log-prob is NaN or infinite: what it samples is noise."""


class GroupOutOfStepError(EngineError):
    """The ranks of one tensor-parallel engine were asked for different things."""


@dataclass(frozen=True)
class Sampling:
    """How to sample. The defaults are the handout's for the GSM8K baseline.

    Attributes:
        temperature: sampling temperature; 0 is greedy.
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

    Raises:
        NonFiniteLogProbError: a log-prob is NaN or infinite.
    """

    text: str
    token_ids: tuple[int, ...]
    log_probs: tuple[float, ...]
    finish_reason: Literal["stop", "length"]

    def __post_init__(self) -> None:
        if not all(map(math.isfinite, self.log_probs)):
            place = next(place for place, value in enumerate(self.log_probs) if not math.isfinite(value))
            raise NonFiniteLogProbError(
                f"the rollout engine returned a log-prob of {self.log_probs[place]} for token {place + 1} of "
                f"{len(self.log_probs)} of the response {self.text!r:.200}: its weights or its arithmetic are broken"
            )


SUMMED_AT_ONCE = 2**22


@dataclass(frozen=True)
class WeightSum:
    """A checksum of a weight, or of a part of one, that does not depend on where or how its numbers lie.

    Attributes:
        numel: how many numbers.
        total, magnitude: their sum, and the sum of their absolute values, in float64.
    """

    numel: int
    total: float
    magnitude: float

    @classmethod
    def of(cls, weight: Tensor) -> "WeightSum":
        """Summed in float64, some millions at a time: torch converts what it sums, and a whole embedding in float64
        would not fit beside an engine."""
        sums = torch.zeros(2, dtype=torch.float64, device=weight.device)
        for part in weight.detach().flatten().split(SUMMED_AT_ONCE):
            sums += torch.stack([part.sum(dtype=torch.float64), part.abs().sum(dtype=torch.float64)])
        return cls(weight.numel(), *sums.tolist())


@runtime_checkable
class RolloutEngine(Protocol):
    """A policy that can be sampled from, and given new weights. Use it as a context manager."""

    @property
    def policy_version(self) -> int:
        """What the last `load_policy` was given; 0 before it."""
        ...

    @property
    def dtype(self) -> str:
        """Of its weights and its compute: "float32" or "bfloat16"."""
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
        """Wake up with new weights, and drop whatever was computed from the old ones.

        Args:
            weights: the items of the trainer's `state_dict()`, read one at a time, so that no second copy of the policy
                is ever whole. Not `named_parameters()`, which leaves out a tied head.
            version: the trainer's count of optimiser steps.
        """
        ...

    def held_weights(self) -> dict[str, list[WeightSum]]:
        """Checksums of the weights, read where the engine keeps them: by name those that it keeps as the trainer does,
        one for each rank of the engine. At least one name; a kernel's own packing may leave out many."""
        ...

    def forget_prompts(self) -> None:
        """Drop the keys and values of prompts that were kept for later ones. `load_policy` does so by itself."""
        ...

    def sleep(self) -> None:
        """Give the accelerator's memory back until `wake` or `load_policy`."""
        ...

    def wake(self) -> None:
        """Be ready again with the weights of before."""
        ...

    def close(self) -> None: ...

    def __enter__(self) -> "RolloutEngine": ...

    def __exit__(self, *exception: object) -> None: ...


def derive_seed(seed: int, *path: int) -> int:
    """A seed for one part of a run, such as one prompt of a call: well spread, the same on every machine."""
    return int(np.random.SeedSequence((seed, *path)).generate_state(1, np.uint64)[0] >> np.uint64(16))


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
