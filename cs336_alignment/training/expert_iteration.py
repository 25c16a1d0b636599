"""Expert iteration (handout section 5, problem expert_iteration_experiment).

for step = 1 .. n_ei_steps:
    sample a batch of D_b questions
    sample G responses to each from the current policy, and grade them
    keep the correct ones
    fine-tune the policy on them, with training/sft.py
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from time import monotonic
from typing import Any

from cs336_alignment.rollout.engine import Sampling, derive_seed
from cs336_alignment.tasks.problem import Problem
from cs336_alignment.training.alarms import collapse_alarms
from cs336_alignment.training.learner import OptimizerConfig, StepResult
from cs336_alignment.training.metrics import over_updates, rollout_metrics, step_metrics
from cs336_alignment.training.rollouts import Rollout
from cs336_alignment.training.session import ROLLOUTS, QuestionStream, RunConfig, Session, problems_to_ask
from cs336_alignment.training.sft import SFTStepsConfig, sft_steps


@dataclass(frozen=True)
class ExpertIterationConfig:
    """Expert iteration."""

    run: RunConfig = field(default_factory=lambda: RunConfig(eval_every=1, checkpoint_every=1))
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(learning_rate=2e-5))
    sft: SFTStepsConfig = field(default_factory=lambda: SFTStepsConfig(epochs=1))
    """How the policy is fine-tuned in each step."""
    n_ei_steps: int = 5
    """Rounds of sampling and fine-tuning."""
    questions_per_step: int = 512
    """D_b: questions sampled a round; the handout tries 512, 1024 and 2048."""
    rollouts_per_question: int = 4
    """G: responses to each."""
    min_tokens: int = 4
    """Shortest response: an empty one breaks the fine-tuning."""

    def __post_init__(self) -> None:
        for name in ("n_ei_steps", "questions_per_step", "rollouts_per_question"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.min_tokens <= self.run.max_tokens:
            raise ValueError("min_tokens must be between 0 and max_tokens")

    @property
    def sequences_per_step(self) -> int:
        return self.sft.batch_size

    @property
    def sequences_sampled(self) -> int:
        return self.questions_per_step * self.rollouts_per_question

    def longest_example(self) -> int:
        return self.run.longest_rollout

    @property
    def shorten(self) -> str:
        return "lower --max-tokens"

    @property
    def keeps_reference(self) -> bool:
        return False


def run_expert_iteration(config: ExpertIterationConfig) -> bool:
    """The whole command: data, policy, engine, training; False where it was asked to stop before its end."""
    problems = problems_to_ask("train-data", config.run.train_data, config.run)
    eval_problems = problems_to_ask("eval-data", config.run.eval_data, config.run)
    with Session(config, config.run, config.optimizer, eval_problems, steps=config.n_ei_steps) as session:
        train_expert_iteration(config, problems, session)
        return session.progress.step == config.n_ei_steps


def train_expert_iteration(config: ExpertIterationConfig, problems: Sequence[Problem], session: Session) -> None:
    """Sample, keep what is right, imitate it, and again.

    Args:
        config: how.
        problems: the training questions.
        session: the policy, its engine, its record.
    """
    questions = QuestionStream(problems, config.run.seed)
    if session.progress.step == 0:
        session.sync_engine(problems)
        session.evaluate(0)
    for step in range(session.progress.step + 1, config.n_ei_steps + 1):
        began = monotonic()
        proof = session.sync_engine(problems)
        asked = questions.take(session.progress.questions_used, config.questions_per_step)
        session.progress.questions_used += len(asked)
        rollouts = session.sample(asked, _sampling(config, step))
        session.engine.sleep()
        sampled = monotonic()
        if session.cut_short(step):
            return
        correct = [rollout for rollout in rollouts if rollout.reward]
        metrics: dict[str, Any] = {**rollout_metrics(rollouts), **asdict(proof), "kept": len(correct)}
        updates = []
        for done, result in _fine_tune(config, correct, session, step):
            updates.append(step_metrics(result))
            if done < config.sft.steps(len(correct)) and session.cut_short(step):
                return
        metrics |= over_updates(updates)
        metrics["alarms"] = collapse_alarms(metrics)
        for alarm in metrics["alarms"]:
            session.record.warn(f"step {step}: {alarm}")
        if not correct:
            session.record.warn(f"no rollout of step {step} was correct: there is nothing to imitate")
        session.record.completions(f"rollouts_step_{step}", map(asdict, rollouts))
        timing = {"rollout_seconds": sampled - began, "train_seconds": monotonic() - sampled}
        session.record.log("train", step, metrics, timing)
        if session.evaluation_due(step):
            session.sync_engine(problems)
            session.evaluate(step)
        if session.end_step(step):
            return


def _fine_tune(
    config: ExpertIterationConfig, correct: Sequence[Rollout], session: Session, step: int
) -> Iterator[tuple[int, StepResult]]:
    """SFT on the token ids that were sampled. Before its first step the policy is still the one that sampled them."""
    seed = derive_seed(config.run.seed, ROLLOUTS, step)
    guard = session.sampler_guard(config.min_tokens)

    def compare(rows: Sequence[int], result: StepResult) -> None:
        guard.check(step, [correct[row] for row in rows], result.log_probs)

    examples = [rollout.example for rollout in correct]
    return sft_steps(session.learner, examples, config.sft, seed, inspect_first=compare)


def _sampling(config: ExpertIterationConfig, step: int) -> Sampling:
    return Sampling(
        temperature=config.run.temperature,
        max_tokens=config.run.max_tokens,
        min_tokens=config.min_tokens,
        n=config.rollouts_per_question,
        seed=derive_seed(config.run.seed, ROLLOUTS, step),
    )
