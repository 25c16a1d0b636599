"""Group-normalised rewards, the policy-gradient losses, masked means and the GRPO step (handout section 7)."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cs336_alignment.numerics.advantages import group_normalized_advantages
from cs336_alignment.numerics.aggregation import constant_weights, sequence_mean_weights, token_mean_weights
from cs336_alignment.numerics.log_probs import sampling_logits
from cs336_alignment.numerics.policy_gradient import MAX_LOG_RATIO
from cs336_alignment.training.microbatch import backward_token_losses
from tests import references, snapshot_cases
from tests.adapters import (
    run_compute_group_normalized_rewards,
    run_compute_grpo_clip_loss,
    run_compute_naive_policy_gradient_loss,
    run_compute_policy_gradient_loss,
    run_grpo_microbatch_train_step,
    run_masked_mean,
    run_masked_normalize,
)
from tests.common import grad_of

LOSS_TYPES = ["no_baseline", "reinforce_with_baseline", "grpo_clip", "grpo_no_clip"]
STEPS = snapshot_cases.GRADIENT_ACCUMULATION_STEPS


def group_normalized_rewards(reward_fn, normalize_by_std):
    advantages, raw_rewards, _ = run_compute_group_normalized_rewards(
        reward_fn=reward_fn,
        rollout_responses=snapshot_cases.RESPONSES,
        repeated_ground_truths=snapshot_cases.GROUND_TRUTHS,
        group_size=snapshot_cases.GROUP_SIZE,
        advantage_eps=1e-6,
        normalize_by_std=normalize_by_std,
    )
    return {"advantages": advantages, "raw_rewards": raw_rewards}


def test_compute_group_normalized_rewards_normalize_by_std(numpy_snapshot, reward_fn):
    numpy_snapshot.assert_match(group_normalized_rewards(reward_fn, normalize_by_std=True))


def test_compute_group_normalized_rewards_no_normalize_by_std(numpy_snapshot, reward_fn):
    numpy_snapshot.assert_match(group_normalized_rewards(reward_fn, normalize_by_std=False))


def fixed_rewards(*rewards):
    """A reward function that reads the reward off the response's position, as text."""
    responses = [str(position) for position in range(len(rewards))]

    def reward_fn(response, ground_truth):
        reward = rewards[int(response)]
        return {"reward": reward, "format_reward": 1.0, "answer_reward": reward}

    return reward_fn, responses, ["gold"] * len(rewards)


def test_compute_group_normalized_rewards_by_hand():
    # Group (1, 0, 0, 1): mean 1/2, n-1 variance 4 * 1/4 / 3 = 1/3, so A = +-(1/2) / (sqrt(1/3) + eps), eps = 0.5.
    # Group (1, 1, 1, 1): no spread, exactly 0.
    advantages, raw, metadata = run_compute_group_normalized_rewards(
        *fixed_rewards(1, 0, 0, 1, 1, 1, 1, 1), 4, 0.5, True
    )
    a = 0.5 / (math.sqrt(1 / 3) + 0.5)
    torch.testing.assert_close(advantages, torch.tensor([a, -a, -a, a, 0, 0, 0, 0]), rtol=1e-6, atol=0)
    assert raw.tolist() == [1, 0, 0, 1, 1, 1, 1, 1]
    assert advantages.dtype == raw.dtype == torch.float32
    assert metadata["reward_mean"] == 0.75
    assert metadata["reward_std"] == pytest.approx(math.sqrt((6 * 0.25**2 + 2 * 0.75**2) / 7))
    assert (metadata["reward_min"], metadata["reward_max"]) == (0, 1)
    assert metadata["zero_std_groups"] == 0.5
    assert metadata["format_reward_mean"] == 1.0
    assert metadata["answer_reward_mean"] == 0.75
    assert set(metadata) == {
        *("reward_mean", "reward_std", "reward_min", "reward_max"),
        *("format_reward_mean", "answer_reward_mean", "zero_std_groups"),
    }


def test_compute_group_normalized_rewards_without_std():
    advantages, _, _ = run_compute_group_normalized_rewards(*fixed_rewards(3, 1, 0, 0.5), 2, 1e-6, False)
    torch.testing.assert_close(advantages, torch.tensor([1.0, -1.0, -0.25, 0.25]))


def test_equal_rewards_give_exactly_zero():
    # 0.1 is not a binary fraction: the mean of three is off by a rounding error, which / eps would be 1e-10 and more.
    # Other groups, with higher and lower rewards, have no say in it.
    rewards = torch.tensor([0.1, 0.1, 0.1, 0.0, 1.0, 0.0], dtype=torch.float64)
    for by_std in (True, False):
        advantages = group_normalized_advantages(rewards, 3, 1e-6, by_std)
        assert advantages[:3].tolist() == [0.0] * 3
        assert (advantages[3:] != 0).all()


@given(
    rewards=st.lists(st.floats(-10, 10, width=32), min_size=6, max_size=6),
    by_std=st.booleans(),
)
def test_group_normalized_advantages_against_reference(rewards, by_std):
    expected = references.group_normalized(np.array(rewards, dtype=np.float64), 3, 1e-4, by_std)
    actual = group_normalized_advantages(torch.tensor(rewards, dtype=torch.float64), 3, 1e-4, by_std)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize(("group_size", "message"), [(1, "group of one"), (3, "groups of 3"), (0, "at least 2")])
def test_compute_group_normalized_rewards_refuses_odd_groups(group_size, message):
    with pytest.raises(ValueError, match=message):
        run_compute_group_normalized_rewards(*fixed_rewards(1, 0, 1, 0), group_size, 1e-6, True)


def test_compute_group_normalized_rewards_refuses_missing_ground_truths_and_no_rollouts():
    reward_fn, responses, truths = fixed_rewards(1, 0)
    with pytest.raises(ValueError, match="2 responses but 1 ground truths"):
        run_compute_group_normalized_rewards(reward_fn, responses, truths[:1], 2, 1e-6, True)
    with pytest.raises(ValueError, match="0 rollouts"):
        run_compute_group_normalized_rewards(reward_fn, [], [], 2, 1e-6, True)


def test_compute_naive_policy_gradient_loss(numpy_snapshot, inputs):
    loss = run_compute_naive_policy_gradient_loss(inputs["raw_rewards"], inputs["policy_log_probs"])
    numpy_snapshot.assert_match({"loss": loss})


def test_compute_grpo_clip_loss_large_cliprange(numpy_snapshot, inputs):
    loss, _ = run_compute_grpo_clip_loss(
        inputs["advantages"], inputs["policy_log_probs"], inputs["old_log_probs"], cliprange=10.0
    )
    numpy_snapshot.assert_match({"loss": loss})


def test_compute_grpo_clip_loss_small_cliprange(numpy_snapshot, inputs):
    loss, _ = run_compute_grpo_clip_loss(
        inputs["advantages"], inputs["policy_log_probs"], inputs["old_log_probs"], cliprange=0.1
    )
    numpy_snapshot.assert_match({"loss": loss})


@pytest.mark.parametrize(
    ("advantage", "ratio", "loss", "gradient", "clipped"),
    [
        # min(r A, clip(r) A) with cliprange 0.2; the gradient in log pi is -r A where r A is the minimum, else 0.
        (2.0, 1.5, -2.4, 0.0, True),  # better than average and already likelier: min(3.0, 2.4), no further push
        (2.0, 0.5, -1.0, -1.0, False),  # better, but less likely: min(1.0, 1.6), pull back up
        (-2.0, 1.5, 3.0, 3.0, False),  # worse, and likelier: min(-3.0, -2.4), push down
        (-2.0, 0.5, 1.6, 0.0, True),  # worse, and already less likely: min(-1.0, -1.6), no further push
        (2.0, 1.1, -2.2, -2.2, False),  # inside the range both branches agree
        (0.0, 1.5, 0.0, 0.0, False),
    ],
)
def test_grpo_clip_sign_table(advantage, ratio, loss, gradient, clipped):
    old = torch.tensor([[-1.0]], dtype=torch.float64)
    policy = (old + math.log(ratio)).requires_grad_()
    actual, metadata = run_compute_grpo_clip_loss(torch.tensor([[advantage]], dtype=torch.float64), policy, old, 0.2)
    actual.sum().backward()
    assert actual.item() == pytest.approx(loss)
    assert grad_of(policy).item() == pytest.approx(gradient)
    assert metadata["clipped"].item() is clipped


@pytest.mark.parametrize("loss_type", ["grpo_clip", "grpo_no_clip"])
def test_importance_ratio_is_bounded(loss_type):
    # exp(1000) is inf, and inf times an advantage of 0 is NaN. The bound is e^20; a large negative log-ratio is just 0.
    policy = torch.tensor([[0.0, -1000.0]], requires_grad=True)
    old = torch.tensor([[-1000.0, 0.0]])
    for advantage, expected in ((0.0, 0.0), (-1.0, math.exp(MAX_LOG_RATIO))):
        loss, _ = run_compute_policy_gradient_loss(policy, loss_type, None, torch.tensor([[advantage]]), old, 0.2)
        assert loss[0, 0].item() == pytest.approx(expected)
    loss.sum().backward()
    assert torch.isfinite(grad_of(policy)).all()


def policy_gradient_snapshot(inputs, loss_type):
    loss, _ = run_compute_policy_gradient_loss(
        policy_log_probs=inputs["policy_log_probs"],
        loss_type=loss_type,
        raw_rewards=inputs["raw_rewards"],
        advantages=inputs["advantages"],
        old_log_probs=inputs["old_log_probs"],
        cliprange=0.2,
    )
    return {"loss": loss}


def test_compute_policy_gradient_loss_no_baseline(numpy_snapshot, inputs):
    numpy_snapshot.assert_match(policy_gradient_snapshot(inputs, "no_baseline"))


def test_compute_policy_gradient_loss_reinforce_with_baseline(numpy_snapshot, inputs):
    numpy_snapshot.assert_match(policy_gradient_snapshot(inputs, "reinforce_with_baseline"))


def test_compute_policy_gradient_loss_grpo_clip(numpy_snapshot, inputs):
    numpy_snapshot.assert_match(policy_gradient_snapshot(inputs, "grpo_clip"))


def test_compute_policy_gradient_loss_grpo_no_clip(numpy_snapshot, inputs):
    numpy_snapshot.assert_match(policy_gradient_snapshot(inputs, "grpo_no_clip"))


def test_compute_policy_gradient_loss_refuses_an_unknown_type(inputs):
    with pytest.raises(ValueError, match=r"'ppo'; choose one of no_baseline, reinforce_with_baseline,"):
        run_compute_policy_gradient_loss(inputs["policy_log_probs"], "ppo", None, None, None, None)


@pytest.mark.parametrize(
    ("loss_type", "missing"),
    [
        ("no_baseline", "raw_rewards"),
        ("reinforce_with_baseline", "advantages"),
        ("grpo_clip", "advantages"),
        ("grpo_clip", "old_log_probs"),
        ("grpo_clip", "cliprange"),
        ("grpo_no_clip", "advantages"),
        ("grpo_no_clip", "old_log_probs"),
    ],
)
def test_compute_policy_gradient_loss_names_the_missing_argument(inputs, loss_type, missing):
    arguments = {name: inputs[name] for name in ("raw_rewards", "advantages", "old_log_probs")} | {"cliprange": 0.2}
    arguments[missing] = None
    with pytest.raises(ValueError, match=f"'{loss_type}' needs {missing}"):
        run_compute_policy_gradient_loss(inputs["policy_log_probs"], loss_type, **arguments)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_policy_gradient_losses_gradcheck(loss_type):
    generator = torch.Generator().manual_seed(3)
    policy = torch.randn(3, 4, dtype=torch.float64, generator=generator, requires_grad=True)
    old = policy.detach() + 0.5 * torch.randn(3, 4, dtype=torch.float64, generator=generator)
    rewards = torch.randn(3, 1, dtype=torch.float64, generator=generator)
    assert torch.autograd.gradcheck(
        lambda log_probs: run_compute_policy_gradient_loss(log_probs, loss_type, rewards, rewards, old, 0.2)[0], policy
    )


def test_masked_mean_dim0(numpy_snapshot, inputs):
    numpy_snapshot.assert_match({"mean": run_masked_mean(inputs["tensor"], inputs["mask"], 0)})


def test_masked_mean_dim1(numpy_snapshot, inputs):
    numpy_snapshot.assert_match({"mean": run_masked_mean(inputs["tensor"], inputs["mask"], 1)})


def test_masked_mean_dimlast(numpy_snapshot, inputs):
    numpy_snapshot.assert_match({"mean": run_masked_mean(inputs["tensor"], inputs["mask"], -1)})


def test_masked_mean_dimNone(numpy_snapshot, inputs):
    numpy_snapshot.assert_match({"mean": run_masked_mean(inputs["tensor"], inputs["mask"], None)})


def test_masked_mean_and_masked_normalize_on_the_handouts_example():
    # Handout, "thinking about length normalization": responses of 4 and of 7 tokens, each token worth 2 (ratio 1 times
    # advantage 2), at most 7 tokens. The mean forgets the length: 8/4 = 2 and 14/7 = 2. The constant keeps it:
    # 8/7 = 1.1429 and 14/7 = 2.
    ratio = torch.ones(2, 7)
    advantages = torch.tensor([[2.0], [2.0]])
    mask = torch.tensor([[1, 1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1, 1]])
    torch.testing.assert_close(run_masked_mean(ratio * advantages, mask, 1), torch.tensor([2.0, 2.0]))
    expected = torch.tensor([8 / 7, 2.0])
    torch.testing.assert_close(run_masked_normalize(ratio * advantages, mask, 1, 7), expected, rtol=1e-6, atol=0)


def test_masked_mean_of_nothing_is_nan():
    mask = torch.tensor([[True, False], [False, False]])
    mean = run_masked_mean(torch.ones(2, 2), mask, dim=1)
    assert mean[0].item() == 1.0
    assert mean[1].isnan()
    assert run_masked_mean(torch.ones(2, 2), torch.zeros(2, 2)).isnan()


def test_masked_mean_ignores_what_it_masks():
    tensor = torch.tensor([[4.0, math.inf, 2.0]], requires_grad=True)
    mean = run_masked_mean(tensor, torch.tensor([[1, 0, 1]]), dim=1)
    mean.sum().backward()
    assert mean.tolist() == [3.0]
    assert grad_of(tensor).tolist() == [[0.5, 0.0, 0.5]]


@given(
    values=st.lists(st.floats(-100, 100, width=32), min_size=12, max_size=12),
    marks=st.lists(st.booleans(), min_size=12, max_size=12),
    dim=st.sampled_from([0, 1, None]),
    constant=st.floats(0.5, 1000),
)
def test_masked_operations_against_reference(values, marks, dim, constant):
    tensor, mask = torch.tensor(values, dtype=torch.float64).view(3, 4), torch.tensor(marks).view(3, 4)
    arrays = tensor.numpy(), mask.numpy()
    mean = references.masked_mean(*arrays, dim)
    np.testing.assert_allclose(run_masked_mean(tensor, mask, dim), mean, rtol=1e-9, atol=1e-9)
    expected = references.masked_normalize(*arrays, dim, constant)
    np.testing.assert_allclose(run_masked_normalize(tensor, mask, dim, constant), expected, rtol=1e-9, atol=1e-9)


def test_masked_mean_gradcheck():
    tensor = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[1, 0, 1, 1], [0, 1, 0, 0], [1, 1, 1, 1]])
    assert torch.autograd.gradcheck(lambda values: run_masked_mean(values, mask, 1), tensor)


def grpo_step(inputs):
    return run_grpo_microbatch_train_step(
        policy_log_probs=inputs["policy_log_probs"],
        response_mask=inputs["mask"],
        gradient_accumulation_steps=STEPS,
        loss_type="grpo_clip",
        advantages=inputs["advantages"],
        old_log_probs=inputs["old_log_probs"],
        cliprange=0.2,
    )[0]


def test_grpo_microbatch_train_step_grpo_clip(numpy_snapshot, inputs):
    loss = grpo_step(inputs)
    numpy_snapshot.assert_match({"loss": loss, "gradient": grad_of(inputs["policy_log_probs"])})


def test_grpo_microbatch_train_step_grpo_clip_10_steps(numpy_snapshot, inputs):
    losses = [grpo_step(inputs) for _ in range(10)]
    assert len({loss.item() for loss in losses}) == 1
    numpy_snapshot.assert_match({"loss": losses[0], "gradient": grad_of(inputs["policy_log_probs"])})


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("rows", [1, 4])
def test_grpo_microbatch_train_step_against_reference(loss_type, rows):
    generator = torch.Generator().manual_seed(rows)
    policy = torch.randn(rows, 6, generator=generator).requires_grad_()
    old = policy.detach() + 0.5 * torch.randn(rows, 6, generator=generator)
    rewards, advantages = torch.randn(2, rows, 1, generator=generator)
    mask = torch.rand(rows, 6, generator=generator) < 0.6
    mask[-1] = torch.tensor([False, True, False, False, False, False])  # one token
    if rows > 1:
        mask[0] = False  # an empty response still counts in the divisor
    loss, _ = run_grpo_microbatch_train_step(policy, mask, 3, loss_type, rewards, advantages, old, 0.2)
    arrays = [tensor.detach().double().numpy() for tensor in (policy, rewards, advantages, old)]
    token_loss, token_gradient = references.policy_gradient(loss_type, *arrays, cliprange=0.2)
    expected, gradient = references.grpo_step(token_loss, token_gradient, mask.numpy(), 3)
    np.testing.assert_allclose(loss, expected, rtol=1e-5, atol=1e-8)
    np.testing.assert_allclose(grad_of(policy), gradient, rtol=1e-5, atol=1e-8)


def test_grpo_microbatch_train_step_by_hand():
    # Advantage 3, log-probs -1 and -2 in the response: mean of -3 * l = (3 + 6) / 2 = 4.5. The other row is empty: 0.
    # Mean of the two rows over 2 steps: 4.5 / 4. Gradient of each response token: -3 / 2 tokens / 2 rows / 2 steps.
    log_probs = torch.tensor([[-1.0, -2.0, -7.0], [-7.0, -7.0, -7.0]], requires_grad=True)
    mask = torch.tensor([[1, 1, 0], [0, 0, 0]])
    advantages = torch.tensor([[3.0], [5.0]])
    loss, metadata = run_grpo_microbatch_train_step(
        log_probs, mask, 2, "reinforce_with_baseline", advantages=advantages
    )
    assert loss.item() == 4.5 / 4
    assert not loss.requires_grad
    assert grad_of(log_probs).tolist() == [[-3 / 8, -3 / 8, 0.0], [0.0, 0.0, 0.0]]
    assert metadata["response_tokens"].item() == 2
    assert "clip_fraction" not in metadata


def test_grpo_microbatch_train_step_clip_fraction_counts_response_tokens_alone():
    # Ratios e, 1, e with A = 1: clipped, not, clipped. The mask keeps the first two: 1/2.
    log_probs = torch.tensor([[0.0, -1.0, 0.0]], requires_grad=True)
    _, metadata = run_grpo_microbatch_train_step(
        log_probs,
        torch.tensor([[1, 1, 0]]),
        1,
        "grpo_clip",
        advantages=torch.ones(1, 1),
        old_log_probs=torch.full((1, 3), -1.0),
        cliprange=0.2,
    )
    assert metadata["clip_fraction"].item() == 0.5
    assert metadata["clipped"][0, :2].tolist() == [True, False]


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("padding", [math.inf, -math.inf, math.nan])
def test_grpo_microbatch_train_step_ignores_padding(loss_type, padding):
    # Padding may hold anything, in both log-probs: the loss and every gradient stay finite, the padding's is 0.
    policy = torch.tensor([[-1.0, padding]], requires_grad=True)
    old = torch.tensor([[-1.0, padding]])
    one = torch.ones(1, 1)
    loss, _ = run_grpo_microbatch_train_step(policy, torch.tensor([[1, 0]]), 1, loss_type, one, one, old, 0.2)
    assert math.isfinite(loss.item())
    assert math.isfinite(grad_of(policy)[0, 0].item())
    assert grad_of(policy)[0, 0] != 0
    assert grad_of(policy)[0, 1] == 0


def test_grpo_microbatch_train_step_all_masked_is_zero():
    policy = torch.randn(2, 3, requires_grad=True)
    ones = torch.ones(2, 1)
    loss, _ = run_grpo_microbatch_train_step(policy, torch.zeros(2, 3), 1, "no_baseline", raw_rewards=ones)
    assert loss.item() == 0
    assert grad_of(policy).tolist() == [[0.0] * 3] * 2


def test_sequences_without_advantage_leave_no_gradient():
    policy = torch.randn(2, 3, requires_grad=True)
    mask = torch.ones(2, 3, dtype=torch.bool)
    advantages = torch.tensor([[0.0], [1.0]])
    run_grpo_microbatch_train_step(policy, mask, 1, "grpo_clip", None, advantages, policy.detach(), 0.2)
    assert grad_of(policy)[0].tolist() == [0.0] * 3
    assert (grad_of(policy)[1] != 0).all()


def test_grpo_microbatch_train_step_bfloat16():
    # Means of -A log p: 1 * (1 + 2) / 2 = 1.5, -2 * (0.5 + 4) / 2 = -4.5, 0.5 * (3 + 1) / 2 = 1.
    log_probs = torch.tensor([[-1.0, -2.0], [-0.5, -4.0], [-3.0, -1.0]]).bfloat16().requires_grad_()
    advantages = torch.tensor([[1.0], [-2.0], [0.5]]).bfloat16()
    mask = torch.ones(3, 2, dtype=torch.bool)
    loss, _ = run_grpo_microbatch_train_step(log_probs, mask, 7, "reinforce_with_baseline", advantages=advantages)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx((1.5 - 4.5 + 1) / 21, rel=1e-6)
    expected = (-advantages.float() / 2 / 21).expand(3, 2).bfloat16()
    torch.testing.assert_close(grad_of(log_probs), expected, rtol=2**-8, atol=0)


def test_results_lie_where_their_inputs_do():
    """On torch's meta device, which needs no GPU, what is made on the CPU by mistake fails or lies elsewhere."""
    logits = torch.zeros(2, 5, device="meta")
    assert sampling_logits(logits, vocab_size=3).device.type == "meta"
    lengths = torch.zeros(2, dtype=torch.int64, device="meta")
    for weights in (sequence_mean_weights(lengths), constant_weights(lengths, 2.0), token_mean_weights(lengths)):
        assert weights.device.type == "meta"
    mask = torch.zeros(2, 5, dtype=torch.bool, device="meta")
    loss = backward_token_losses(logits.requires_grad_(), mask, torch.ones(2, dtype=torch.float64))
    assert loss.device.type == "meta"
