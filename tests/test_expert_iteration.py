"""The loop of expert iteration on a scripted session: what it imitates, and what it does when it is asked to stop."""

from types import SimpleNamespace
from typing import Any, cast

import torch

from cs336_alignment.rollout.proof import Proof
from cs336_alignment.tasks.problem import Problem
from cs336_alignment.training.checkpoint import Progress
from cs336_alignment.training.expert_iteration import ExpertIterationConfig, train_expert_iteration
from cs336_alignment.training.learner import Learner, OptimizerConfig, StepResult
from cs336_alignment.training.packing import TokenExample
from cs336_alignment.training.rollouts import Rollout
from cs336_alignment.training.session import Session
from cs336_alignment.training.sft import SFTStepsConfig

PROBLEMS = [Problem(f"q{number}", str(number)) for number in range(8)]
CONFIG = ExpertIterationConfig(
    sft=SFTStepsConfig(epochs=1, batch_size=2), n_ei_steps=2, questions_per_step=8, rollouts_per_question=1
)


class ScriptedLearner(Learner):
    """Notes what it is given to learn."""

    config = OptimizerConfig()

    def __init__(self):
        self.learnt = []

    def step(self, examples, weights, token_loss_of, learning_rate=None, describe=lambda _: {}, inspect=lambda _: None):
        self.learnt.append([example.response_ids[0] for example in examples])
        scores: list[torch.Tensor | None] = [torch.zeros(1) for _ in examples]
        result = StepResult(1.0, 1.0, scores, scores, len(examples), 4)
        inspect(result)
        return result


class ScriptedSession(Session):
    """Answers to odd questions are right. Notes what is logged and saved; asked to stop at the given look."""

    def __init__(self, stop_at_look=None):
        self.progress = Progress()
        self.logged, self.saved, self.compared = [], [], []
        self.engine = SimpleNamespace(sleep=lambda: None, dtype="float32")
        self.learner = ScriptedLearner()
        self.record = SimpleNamespace(
            log=lambda kind, step, metrics, timing: self.logged.append((kind, step, metrics)),
            warn=lambda message: None,
            completions=lambda name, rows: list(rows),
        )
        self.looks, self.stop_at_look = 0, stop_at_look

    def sync_engine(self, problems):
        return Proof(0.0, 0.0)

    def evaluate(self, step):
        return {}

    def evaluation_due(self, step):
        return False

    def sample(self, problems, sampling):
        numbers = [int(problem.gold) for problem in problems]
        return [
            Rollout("q", str(n), "", TokenExample((1,), (n,)), (-1.0,), 1.0, float(n % 2), float(n % 2), "stop")
            for n in numbers
        ]

    def sampler_guard(self, min_tokens):
        def check(step, rollouts, trainer):
            self.compared.append((step, len(rollouts)))

        return cast(Any, SimpleNamespace(check=check))

    def cut_short(self, step):
        self.looks += 1
        return self.looks == self.stop_at_look

    def end_step(self, step):
        self.saved.append(step)
        return False


def test_each_round_imitates_what_was_right():
    session = ScriptedSession()
    train_expert_iteration(CONFIG, PROBLEMS, session)
    # Eight questions a round, each once: 1, 3, 5 and 7 are kept, in batches of two.
    assert [len(batch) for batch in session.learner.learnt] == [2] * 4
    rounds = session.learner.learnt[:2], session.learner.learnt[2:]
    assert [sorted(number for batch in one for number in batch) for one in rounds] == [[1, 3, 5, 7]] * 2
    assert [(step, metrics["kept"]) for _, step, metrics in session.logged] == [(1, 4), (2, 4)]
    assert session.saved == [1, 2]
    # Engine and trainer are compared while they are the same policy: in the first update of each round.
    assert session.compared == [(1, 2), (2, 2)]


def test_a_round_that_is_cut_short_leaves_no_trace():
    # Looks come after the sampling and between the two updates of a round. The fourth is in the second round, after its
    # first batch: the checkpoint of the first round stands.
    session = ScriptedSession(stop_at_look=4)
    train_expert_iteration(CONFIG, PROBLEMS, session)
    assert len(session.learner.learnt) == 3
    assert [step for _, step, _ in session.logged] == [1]
    assert session.saved == [1]
