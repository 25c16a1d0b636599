"""The records that the grader hands out."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Verdict:
    """Is the answer the gold answer, and which step said so.

    Attributes:
        equal: the judgement.
        step: the name of the step that decided; docs/grading.md lists them.
        undecided: the question was beyond the grader's bounds, so `equal` is False for want of a proof.
    """

    equal: bool
    step: str
    undecided: bool = False


@dataclass(frozen=True, slots=True)
class Grade:
    """One graded response.

    Attributes:
        formatted: the response keeps the prompt's format.
        answer: the text that was judged; None where there is none to judge.
        verdict: the judgement of that text.
    """

    formatted: bool
    answer: str | None
    verdict: Verdict

    @property
    def rewards(self) -> dict[str, float]:
        """The handout's three rewards."""
        answer_reward = float(self.verdict.equal)
        return {"format_reward": float(self.formatted), "answer_reward": answer_reward, "reward": answer_reward}
