"""Stops a run whose rollouts do not come from the policy in training, before a step is taken on them.

The proof after each sync is a small batch; some faults of an engine show at real batch sizes alone (a CUDA graph, a
cascade of attention). So every token that is trained on is compared: rollout/proof.py has the limits.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import Tensor

from cs336_alignment.ranks import Ranks
from cs336_alignment.rollout.proof import LIMITS, SamplerCheck, SamplerDifferenceError, check_sampler
from cs336_alignment.run_folder import write_json_lines
from cs336_alignment.training.rollouts import Rollout


@dataclass(frozen=True)
class SamplerGuard:
    """Compares the engine's log-probs of rollouts with the trainer's.

    Attributes:
        dtype: the engine's.
        skipped: tokens at the beginning of each response in which EOS could not be sampled (`min_tokens`).
        folder: where the offending rollouts are written.
        ranks: this process among its peers; all of them compare the same.
        warn: says something to the user.
    """

    dtype: str
    skipped: int
    folder: Path
    ranks: Ranks
    warn: Callable[[str], None]

    def check(self, step: int, rollouts: Sequence[Rollout], trainer: Sequence[Tensor | None]) -> SamplerCheck:
        """Compare, before the policy is changed.

        Args:
            step: of the algorithm, for messages.
            rollouts: what is trained on.
            trainer: log-probs of each one's tokens, under the policy that sampled it; None where it was not run.

        Raises:
            SamplerDifferenceError: they are too far apart; the same on every rank.
        """
        run = [(rollout, scores) for rollout, scores in zip(rollouts, trainer, strict=True) if scores is not None]
        found = check_sampler(
            self.dtype, [scores for _, scores in run], [rollout.sampler_log_probs for rollout, _ in run], self.skipped
        )
        if found.stops:
            path = self.folder / f"sampler_difference_step_{step}.jsonl"
            if self.ranks.is_main:
                offending = [run[row] for row in found.offending]
                write_json_lines(path, ({**asdict(r), "trainer_log_probs": scores.tolist()} for r, scores in offending))
            self.ranks.wait()  # a rank that raised would end the one that writes
            raise SamplerDifferenceError(
                f"step {step}: the rollout engine's log-probs of what it sampled are {found.mean:.2g} nats a token "
                f"from the trainer's (the limit in {self.dtype} is {LIMITS[self.dtype].mean}, and "
                f"{LIMITS[self.dtype].sequence} over one response): its rollouts do not come from this policy. The "
                f"policy was left as it was, and what is furthest apart written to {path}. The proof passed on a small "
                "batch: try --engine-batch-size 32, or --dtype float32"
            )
        if found.alarm:
            self.warn(
                f"step {step}: engine and trainer are {found.mean:.2g} nats a token apart; the run stops beyond "
                f"{LIMITS[self.dtype].mean}"
            )
        return found
