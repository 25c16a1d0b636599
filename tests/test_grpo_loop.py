"""The pieces of the GRPO loop: losses from a train batch, sampling of groups, train batches, options."""

import numpy as np
import pytest
import torch

from cs336_alignment.numerics.policy_gradient import k3_divergence, truncated_importance_weights
from cs336_alignment.tasks.problem import Problem
from cs336_alignment.training.alarms import collapse_alarms
from cs336_alignment.training.checkpoint import Progress
from cs336_alignment.training.grpo import (
    GRPOConfig,
    TokenLosses,
    TrainBatch,
    correction_metrics,
    of_sampling_policy,
    off_policy_metrics,
    sample_groups,
    sequence_weights,
    train_batches,
)
from cs336_alignment.training.learner import OptimizerConfig, StepResult
from cs336_alignment.training.metrics import over_updates
from cs336_alignment.training.packing import TokenExample
from cs336_alignment.training.rollouts import Rollout
from cs336_alignment.training.session import QuestionStream, RunConfig, Session, shuffled
from tests.common import grad_of

LENGTHS = (3, 1, 4, 2)
GENERATOR = np.random.default_rng(5)
OLD, SAMPLER, REFERENCE, POLICY = ([-3 * GENERATOR.random(length) for length in LENGTHS] for _ in range(4))
ADVANTAGES = (1.5, -0.5, 0.0, -2.0)
REWARDS = (1.0, 0.0, 1.0, 0.0)


def rollout(row, reward=0.0, question="q"):
    return Rollout(
        question=question,
        gold="1",
        response="",
        example=TokenExample((1,), (2,) * LENGTHS[row]),
        sampler_log_probs=tuple(SAMPLER[row]),
        format_reward=1.0,
        answer_reward=reward,
        reward=reward,
        finish_reason="stop",
    )


def batch(off_policy=True, reference=True):
    def tensors(values):
        return [torch.tensor(value) for value in values]

    return TrainBatch(
        [rollout(row, REWARDS[row]) for row in range(4)],
        torch.tensor(ADVANTAGES, dtype=torch.float64),
        tensors(OLD) if off_policy else None,
        tensors(REFERENCE) if reference else None,
    )


def config(**options):
    defaults = {"optimizer": OptimizerConfig(gradient_accumulation_steps=1), "group_size": 2, "train_batch_size": 4}
    return GRPOConfig(**{**defaults, "rollout_batch_size": 4, "run": RunConfig(max_tokens=10), **options})


def expected(options, off_policy):
    """Loss and gradient of every token, in float64 numpy, token by token."""
    losses, gradients = [], []
    aggregation = options.get("aggregation", "sequence_mean")
    high = options.get("cliprange_high") or 0.2
    for row, length in enumerate(LENGTHS):
        weight = {"sequence_mean": 1 / (4 * length), "constant": 1 / (4 * 10), "token_mean": 1 / 10}[aggregation]
        for place in range(length):
            policy = POLICY[row][place]
            old = OLD[row][place] if off_policy else policy
            ratio = np.exp(policy - old)
            a = ADVANTAGES[row]
            kind = options["loss_type"]
            if kind == "no_baseline":
                loss, slope = -REWARDS[row] * policy, -REWARDS[row]
            elif kind == "reinforce_with_baseline":
                loss, slope = -a * policy, -a
            elif kind == "grpo_clip" and ((a > 0 and ratio > 1 + high) or (a < 0 and ratio < 0.8)):
                loss, slope = -a * (1 + high if a > 0 else 0.8), 0.0
            else:
                loss, slope = -a * ratio, -a * ratio
            if options.get("importance_cap"):
                importance = min(np.exp(old - SAMPLER[row][place]), options["importance_cap"])
                loss, slope = loss * importance, slope * importance
            if options.get("kl_coef"):
                distance = REFERENCE[row][place] - policy
                loss += options["kl_coef"] * (np.exp(distance) - distance - 1)
                slope += options["kl_coef"] * (1 - np.exp(distance))
            losses.append(weight * loss)
            gradients.append(weight * slope)
    return np.array(losses), np.array(gradients)


@pytest.mark.parametrize("off_policy", [True, False])
@pytest.mark.parametrize(
    "options",
    [
        {"loss_type": "no_baseline"},
        {"loss_type": "reinforce_with_baseline", "aggregation": "constant"},
        {"loss_type": "grpo_clip"},
        {"loss_type": "grpo_clip", "cliprange_high": 0.6, "aggregation": "token_mean"},
        {"loss_type": "grpo_no_clip", "importance_cap": 1.1},
        {"loss_type": "grpo_clip", "kl_coef": 0.3, "importance_cap": 2.0},
    ],
    ids=str,
)
def test_token_losses_against_reference(options, off_policy):
    settings = config(**options)
    train = batch(off_policy)
    weights = sequence_weights(settings, train)
    if not options.get("kl_coef"):
        # Zeroed weights are for rows without a signal: no loss either way.
        signal = REWARDS if options["loss_type"] == "no_baseline" else ADVANTAGES
        assert [weight == 0 for weight in weights.tolist()] == [value == 0 for value in signal]
    token_loss = TokenLosses(settings, train, weights, torch.device("cpu"))([0, 1, 2, 3])
    policy = torch.tensor(np.concatenate(POLICY), requires_grad=True)
    # In two chunks, as the output head hands them out.
    losses = torch.cat([token_loss(policy[at], at) for at in (slice(0, 6), slice(6, 10))])
    losses.sum().backward()
    loss, gradient = expected(options, off_policy)
    np.testing.assert_allclose(losses.detach(), loss, rtol=1e-10, atol=1e-15)
    np.testing.assert_allclose(grad_of(policy), gradient, rtol=1e-10, atol=1e-15)


def test_a_microbatch_is_a_choice_of_rows():
    settings = config(loss_type="grpo_clip")
    train = batch()
    losses = TokenLosses(settings, train, sequence_weights(settings, train), torch.device("cpu"))
    policy = torch.tensor(np.concatenate([POLICY[3], POLICY[0]]))
    everything, _ = expected({"loss_type": "grpo_clip"}, True)
    np.testing.assert_allclose(losses([3, 0])(policy, slice(None)), [*everything[8:10], *everything[:3]], rtol=1e-10)


def test_k3_and_truncated_importance_by_hand():
    policy, reference = torch.tensor([-1.0, -2.0], dtype=torch.float64), torch.tensor([-1.0, -1.0], dtype=torch.float64)
    # d = 0: 1 - 0 - 1 = 0; d = 1: e - 1 - 1.
    assert k3_divergence(policy, reference).tolist() == pytest.approx([0.0, np.e - 2])
    assert torch.isfinite(k3_divergence(torch.tensor([-1e6]), torch.tensor([0.0]))).all()
    weights = truncated_importance_weights(policy.requires_grad_(), reference, 0.9)
    assert weights.tolist() == pytest.approx([0.9, np.exp(-1)])
    assert not weights.requires_grad


def test_off_policy_metrics_by_hand():
    # Only rows 0 and 3 were run. Ratios e^(policy - old); row 0 has A > 0 and is clipped above 1.2, row 3 below 0.8.
    train = batch()
    scores = [torch.tensor(POLICY[0]), None, None, torch.tensor(POLICY[3])]
    result = StepResult(0.0, 0.0, scores, scores, 2, 5)
    metrics = off_policy_metrics(config(loss_type="grpo_clip"), train, result)
    difference = np.concatenate([POLICY[0] - OLD[0], POLICY[3] - OLD[3]])
    ratio = np.exp(difference)
    clipped = [*(ratio[:3] > 1.2), *(ratio[3:] < 0.8)]
    assert metrics["clip_fraction"] == pytest.approx(np.mean(clipped))
    assert metrics["log_ratio"] == pytest.approx(difference.mean())
    assert metrics["approximate_kl"] == pytest.approx((ratio - difference - 1).mean())
    # Engine against trainer under the policy that sampled: the old log-probs, and on-policy those of the step.
    for trainer, one in ((OLD, train), (POLICY, batch(off_policy=False))):
        scores = of_sampling_policy(one, result)
        assert [row for row, of_row in enumerate(scores) if of_row is not None] == [0, 3]
        expected = [trainer[0].tolist(), trainer[3].tolist()]
        assert [of_row.tolist() for of_row in scores if of_row is not None] == expected


@pytest.mark.parametrize("off_policy", [True, False])
def test_correction_metrics_by_hand(off_policy):
    # Of rows 0 and 3, the ones that were run: k3 to the reference, and min(pi / pi_engine, cap).
    scores = [torch.tensor(POLICY[0]), None, None, torch.tensor(POLICY[3])]
    result = StepResult(0.0, 0.0, scores, scores, 2, 5)
    metrics = correction_metrics(config(kl_coef=0.1, importance_cap=1.1), batch(off_policy), result)
    distance = np.concatenate([REFERENCE[0] - POLICY[0], REFERENCE[3] - POLICY[3]])
    assert metrics["reference_kl"] == pytest.approx((np.exp(distance) - distance - 1).mean())
    trainer = OLD if off_policy else POLICY
    ratio = np.exp(np.concatenate([trainer[0] - SAMPLER[0], trainer[3] - SAMPLER[3]]))
    assert 0 < (ratio > 1.1).sum() < 5
    assert metrics["importance_weight"] == pytest.approx(np.minimum(ratio, 1.1).mean())
    assert metrics["importance_truncated"] == (ratio > 1.1).mean()
    assert correction_metrics(config(), batch(off_policy, reference=False), result) == {}


def test_train_batches_keep_rollouts_with_their_advantages():
    settings = config(train_batch_size=2, epochs_per_rollout_batch=8)
    assert not settings.on_policy
    parts = list(train_batches(settings, batch(), step=1))
    assert len(parts) == 16
    for part in parts:
        for one, advantage, old in zip(part.rollouts, part.advantages, part.old_log_probs or [], strict=True):
            row = LENGTHS.index(one.length)
            assert advantage == ADVANTAGES[row]
            assert old.tolist() == OLD[row].tolist()
    for epoch in range(8):
        seen = [one.length for part in parts[2 * epoch : 2 * epoch + 2] for one in part.rollouts]
        assert sorted(seen) == sorted(LENGTHS)
    for part in parts:
        # Rows 0 and 1 answer one question, rows 2 and 3 another.
        assert [one.length for one in part.rollouts] in (list(LENGTHS[:2]), list(LENGTHS[2:]))
    firsts = {parts[2 * epoch].rollouts[0].length for epoch in range(8)}
    assert firsts == {LENGTHS[0], LENGTHS[2]}
    assert config().on_policy
    (whole,) = train_batches(config(), batch(), step=1)
    assert [one.length for one in whole.rollouts] == list(LENGTHS)


class ScriptedSession(Session):
    """Samples groups of two whose rewards follow the question's number: 0: equal, 1: unlike."""

    def __init__(self):
        self.progress = Progress()
        self.seeds = []

    def sample(self, problems, sampling):
        self.seeds.append(sampling.seed)
        return [
            rollout(0, reward=float(draw * (int(problem.gold) % 2)), question=problem.question)
            for problem in problems
            for draw in range(sampling.n)
        ]


PROBLEMS = [Problem(f"q{number}", str(number)) for number in range(8)]


def test_dynamic_sampling_replaces_groups_without_spread():
    session, questions = ScriptedSession(), QuestionStream(PROBLEMS, seed=1)
    order = [int(problem.gold) % 2 for problem in questions.take(0, 8)]
    settings = config(dynamic_sampling_rounds=4)
    sample = sample_groups(settings, questions, session, step=1)
    rollouts, rounds = sample.chosen, sample.rounds
    wanted = next(taken for taken in range(2, 9, 2) if sum(order[:taken]) >= 2)
    assert rounds == wanted // 2
    assert session.progress.questions_used == wanted
    assert [one.reward for one in rollouts] == [0.0, 1.0, 0.0, 1.0]
    assert len(set(session.seeds)) == rounds
    # The metrics describe all that was sampled: two rollouts a question, half of them right where the number is odd.
    assert [one.reward for one in sample.all_sampled[1::2]] == order[:wanted]


def test_where_the_rounds_do_not_suffice_groups_without_spread_fill_up():
    session, questions = ScriptedSession(), QuestionStream([Problem("q", "0")] * 3, seed=1)
    sample = sample_groups(config(dynamic_sampling_rounds=3), questions, session, step=1)
    assert (sample.rounds, len(sample.chosen), session.progress.questions_used) == (3, 4, 6)
    assert len(sample.all_sampled) == 12


def test_without_dynamic_sampling_the_first_groups_are_taken():
    session, questions = ScriptedSession(), QuestionStream(PROBLEMS, seed=1)
    sample = sample_groups(config(), questions, session, step=1)
    assert sample.rounds == 1
    assert sample.chosen == sample.all_sampled
    assert [one.question for one in sample.chosen[::2]] == [problem.question for problem in questions.take(0, 2)]


def test_the_question_stream_visits_all_before_any_again():
    questions = QuestionStream(PROBLEMS, seed=3)
    stream = [problem.question for problem in questions.take(0, 24)]
    for epoch in range(3):
        assert sorted(stream[8 * epoch : 8 * epoch + 8]) == [f"q{number}" for number in range(8)]
    assert stream[:8] != stream[8:16]
    assert [problem.question for problem in questions.take(5, 4)] == stream[5:9]
    assert shuffled(8, 3, 0) != shuffled(8, 4, 0)


def test_several_updates_as_one():
    updates = [
        {"loss": 1.0, "response_tokens": 0, "tokens_run": 3, "entropy": None},
        {"loss": 2.0, "response_tokens": 10, "tokens_run": 4, "entropy": 0.5},
        {"loss": 6.0, "response_tokens": 30, "tokens_run": 5, "entropy": 0.1},
    ]
    # (10 * 0.5 + 30 * 0.1) / 40: a mean over tokens weighs updates by theirs.
    assert over_updates(updates) == {
        "loss": 3.0,
        "response_tokens": 40,
        "tokens_run": 12,
        "entropy": pytest.approx(0.2),
    }
    assert over_updates([{"response_tokens": 0, "entropy": None}]) == {"response_tokens": 0, "entropy": None}
    assert over_updates([]) == {}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rollout_batch_size": 255}, "multiple of group_size"),
        (
            {"train_batch_size": 100, "optimizer": OptimizerConfig(gradient_accumulation_steps=128)},
            "multiple of gradient_accumulation_steps",
        ),
        ({"group_size": 1}, "group_size must be at least 2"),
        ({"rollout_batch_size": 384}, "multiple of train_batch_size"),
        ({"group_size": 512, "rollout_batch_size": 512}, "at least group_size"),
        ({"epochs_per_rollout_batch": 0}, "epochs_per_rollout_batch"),
    ],
)
def test_the_handouts_assertions(options, message):
    with pytest.raises(ValueError, match=message):
        GRPOConfig(**options)


def test_the_handouts_defaults():
    defaults = GRPOConfig()
    assert (defaults.n_grpo_steps, defaults.rollout_batch_size, defaults.group_size) == (200, 256, 8)
    assert (defaults.optimizer.learning_rate, defaults.optimizer.betas) == (1e-5, (0.9, 0.95))
    assert (defaults.run.temperature, defaults.min_tokens, defaults.run.max_tokens) == (1.0, 4, 1024)
    assert defaults.train_batch_size == 256
    # A budget of tokens splits it, in place of the handout's 128 microbatches: the gradient is the same.
    assert (defaults.optimizer.token_budget, defaults.optimizer.gradient_accumulation_steps) == (None, None)
    assert (defaults.advantage_eps, defaults.optimizer.max_grad_norm, defaults.optimizer.weight_decay) == (1e-6, 1, 0)
    assert defaults.on_policy
    assert defaults.n_prompts_per_rollout_batch == 32


def test_collapse_alarms():
    healthy = {"rollout_entropy": 0.5, "mean_length": 80.0, "zero_std_groups": 0.4, "truncation_rate": 0.1}
    assert collapse_alarms(healthy) == []
    bad = {"rollout_entropy": 0.001, "mean_length": 3.0, "zero_std_groups": 0.95, "truncation_rate": 0.6}
    for name, value in bad.items():
        assert len(collapse_alarms({**healthy, name: value})) == 1
    # Expert iteration has no groups to speak of.
    del healthy["zero_std_groups"]
    assert collapse_alarms(healthy) == []
