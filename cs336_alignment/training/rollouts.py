"""Rollouts: graded responses of the current policy, ready to be trained on."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from cs336_alignment.evaluation import Grader
from cs336_alignment.prompts import fill
from cs336_alignment.ranks import Ranks
from cs336_alignment.rollout.engine import RolloutEngine, Sampling
from cs336_alignment.tasks.problem import Problem
from cs336_alignment.training.packing import TokenExample


@dataclass(frozen=True)
class Rollout:
    """One response to one question.

    Attributes:
        question, gold: what was asked, and the answer.
        response: the text that was graded.
        example: prompt and response as the token ids that were read and sampled.
        sampler_log_probs: of each sampled token, in the engine's view.
        format_reward, answer_reward, reward: the course-compatible rewards.
        finish_reason: "stop" or "length".
    """

    question: str
    gold: str
    response: str
    example: TokenExample
    sampler_log_probs: tuple[float, ...]
    format_reward: float
    answer_reward: float
    reward: float
    finish_reason: str

    @property
    def length(self) -> int:
        return len(self.example.response_ids)


def sample_rollouts(
    engine: RolloutEngine,
    tokenizer: Any,
    problems: Sequence[Problem],
    template: str,
    grader: Grader,
    sampling: Sampling,
    ranks: Ranks,
) -> list[Rollout]:
    """`sampling.n` rollouts for each problem, group after group: generated and graded by all ranks, known to each."""
    first, asked = ranks.share(problems)
    prompts = [fill(template, question=problem.question) for problem in asked]
    drawn = engine.generate(prompts, replace(sampling, first_position=first)) if prompts else []
    rollouts = []
    _, mine = ranks.share_in_group(list(zip(asked, prompts, drawn, strict=True)))
    for problem, prompt, group in mine:
        prompt_ids = tuple(tokenizer(prompt)["input_ids"])
        for completion in group:
            rollouts.append(
                Rollout(
                    question=problem.question,
                    gold=problem.gold,
                    response=completion.text,
                    example=TokenExample(prompt_ids, completion.token_ids),
                    sampler_log_probs=completion.log_probs,
                    **grader(completion.text, problem.gold, True).rewards,
                    finish_reason=completion.finish_reason,
                )
            )
    return ranks.gather(rollouts)
