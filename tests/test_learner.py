"""One optimiser step: the same gradient however the batch is split, and what must not be run is not."""

import json
import math
import shutil

import numpy as np
import pytest
import torch

from cs336_alignment.numerics.aggregation import sequence_mean_weights
from cs336_alignment.ranks import Ranks
from cs336_alignment.run_folder import UsageError
from cs336_alignment.training.learner import Learner, NonFiniteLossError, OptimizerConfig, warmup_cosine
from cs336_alignment.training.packing import TokenExample
from cs336_alignment.training.policy import Policy
from tests.common import TINY_QWEN2, grad_of
from tests.fakes import FakeLM, FakeTokenizer

PROMPTS = ((1, 2, 3), (4, 5))
LENGTHS = (4, 1, 2, 6, 3, 5)
EXAMPLES = [
    TokenExample(PROMPTS[row % 2], tuple((7 * row + 3 * place) % 20 for place in range(length)))
    for row, length in enumerate(LENGTHS)
]
ADVANTAGES = torch.tensor([1.0, -0.5, 0.0, 2.0, 0.0, -1.5], dtype=torch.float64)


def learner(tmp_path, **options):
    config = OptimizerConfig(learning_rate=0.1, **options)
    return Learner(Policy(FakeLM(), FakeTokenizer()), config, Ranks(), tmp_path)


def reinforce(weights):
    """-A_i w_i log pi, each token of its sequence."""

    def token_loss_of(rows):
        spread = (weights * ADVANTAGES)[rows].repeat_interleave(torch.tensor([LENGTHS[row] for row in rows]))
        return lambda log_probs, at: -spread[at] * log_probs

    return token_loss_of


def gradient(one, weights):
    """What a step puts into the policy's gradient, read before the optimiser clears it."""
    taken = {}
    one.optimizer.zero_grad = lambda: taken.update(
        {name: parameter.grad.clone() for name, parameter in one.policy.named_parameters()}
    )
    result = one.step(EXAMPLES, weights, reinforce(weights))
    return taken, result


def whole_batch():
    """The same loss in one piece, by plain autograd on rows run alone."""
    policy = Policy(FakeLM(), FakeTokenizer())
    loss = torch.zeros((), dtype=torch.float64)
    for example, advantage in zip(EXAMPLES, ADVANTAGES, strict=True):
        ids = torch.tensor([[*example.prompt_ids, *example.response_ids[:-1]]])
        body = policy.model.base_model(ids, torch.arange(ids.shape[1])[None])
        log_probs = policy.model.head(body.last_hidden_state[0]).log_softmax(-1)[len(example.prompt_ids) - 1 :]
        chosen = log_probs[range(len(example.response_ids)), list(example.response_ids)]
        loss = loss - advantage * chosen.mean() / len(EXAMPLES)
    loss.backward()
    return loss.item(), {name: grad_of(parameter) for name, parameter in policy.named_parameters()}


@pytest.mark.parametrize(
    "options",
    [{"gradient_accumulation_steps": steps} for steps in (1, 2, 4, 6)]
    + [{"token_budget": n} for n in (None, 1, 9, 100)],
    ids=str,
)
@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "checkpointed"])
def test_every_split_gives_the_gradient_of_the_whole_batch(tmp_path, options, checkpointing):
    weights = sequence_mean_weights(torch.tensor(LENGTHS))
    one = learner(tmp_path, max_grad_norm=1e9, **options)
    one.policy.model.base_model.checkpointing = checkpointing
    taken, result = gradient(one, weights)
    loss, expected = whole_batch()
    assert result.loss == pytest.approx(loss, rel=1e-12)
    norm = math.sqrt(sum((value**2).sum().item() for value in expected.values()))
    assert result.grad_norm == pytest.approx(norm, rel=1e-10)
    for name, value in expected.items():
        torch.testing.assert_close(taken[name], value, rtol=1e-10, atol=1e-12, msg=name)


def test_sequences_without_weight_are_not_run_and_change_nothing(tmp_path):
    weights = sequence_mean_weights(torch.tensor(LENGTHS))
    all_run, everything = gradient(learner(tmp_path, gradient_accumulation_steps=3), weights)
    skipped, result = gradient(learner(tmp_path, gradient_accumulation_steps=3), weights.where(ADVANTAGES != 0, 0.0))
    assert (everything.sequences_run, result.sequences_run) == (6, 4)
    # Rows 0, 1, 3 and 5: prompts of 3 and 2 tokens, 3 + 0 and 5 + 4 response tokens to read. In twos, as the six would
    # be: [0, 1] and [3, 5], which share their prompt: 3 + 3 + 2 + 0 and 2 + 9.
    assert result.tokens_run == 8 + 11
    assert [scores is None for scores in result.log_probs] == [False, False, True, False, True, False]
    for name, value in all_run.items():
        torch.testing.assert_close(skipped[name], value, rtol=1e-10, atol=1e-12, msg=name)


def test_skipping_makes_fewer_microbatches_not_smaller_ones(tmp_path):
    run = []
    weights = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 1.0])
    one = learner(tmp_path, gradient_accumulation_steps=3)
    one.step(EXAMPLES, weights, lambda rows: run.append(list(rows)) or reinforce(weights)(rows))
    assert run == [[0, 2], [3, 5]]


def test_a_batch_without_any_gradient_still_steps(tmp_path):
    one = learner(tmp_path, gradient_accumulation_steps=2)
    before = [parameter.clone() for parameter in one.policy.parameters()]
    result = one.step(EXAMPLES, torch.zeros(6), reinforce(torch.zeros(6)))
    assert (result.loss, result.grad_norm, result.sequences_run, result.tokens_run) == (0.0, 0.0, 0, 0)
    assert one.steps_taken == 1
    for parameter, old in zip(one.policy.parameters(), before, strict=True):
        assert torch.equal(parameter, old)


def test_the_step_is_adamw_on_the_clipped_gradient(tmp_path):
    # The first step of Adam moves each weight by the learning rate against the sign of its gradient.
    one = learner(tmp_path, gradient_accumulation_steps=2, max_grad_norm=0.1)
    before = {name: parameter.clone() for name, parameter in one.policy.named_parameters()}
    weights = sequence_mean_weights(torch.tensor(LENGTHS))
    taken, result = gradient(one, weights)
    assert result.grad_norm > 0.1
    assert math.sqrt(sum((value**2).sum().item() for value in taken.values())) == pytest.approx(0.1, rel=1e-4)
    for name, parameter in one.policy.named_parameters():
        moved = taken[name].abs() > 1e-4
        expected = before[name] - 0.1 * taken[name].sign()
        torch.testing.assert_close(parameter[moved], expected[moved], rtol=0, atol=1e-4)


def test_score_is_in_the_order_of_the_examples(tmp_path):
    one = learner(tmp_path, token_budget=9)
    scores = one.score([*EXAMPLES, TokenExample((1,), ())])
    for example, actual in zip(EXAMPLES, scores, strict=False):
        torch.testing.assert_close(actual, one.score([example])[0], rtol=1e-10, atol=1e-12)
    assert len(scores[-1]) == 0
    # What has no weight is not run.
    some = one.score(EXAMPLES, torch.tensor([1.0, 0.0, 0.0, 0.5, 0.0, 0.0]))
    assert [len(actual) for actual in some] == [LENGTHS[0], 0, 0, LENGTHS[3], 0, 0]
    torch.testing.assert_close(some[3], scores[3], rtol=1e-10, atol=1e-12)


def test_a_loss_that_is_not_finite_stops_before_the_policy_changes(tmp_path):
    one = learner(tmp_path, gradient_accumulation_steps=2)
    before = [parameter.clone() for parameter in one.policy.parameters()]
    with pytest.raises(NonFiniteLossError, match=r"non_finite_step_0\.jsonl"):
        one.step(
            EXAMPLES,
            torch.arange(6) + 1.0,
            lambda rows: lambda log_probs, _: log_probs * math.nan,
            describe=lambda row: {"advantage": ADVANTAGES[row].item()},
        )
    for parameter, old in zip(one.policy.parameters(), before, strict=True):
        assert torch.equal(parameter, old)
    rows = [json.loads(line) for line in (tmp_path / "non_finite_step_0.jsonl").read_text().splitlines()]
    assert [tuple(row["response_ids"]) for row in rows] == [example.response_ids for example in EXAMPLES]
    assert len(rows[0]["log_probs"]) == 4
    assert [row["weight"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert [row["advantage"] for row in rows] == ADVANTAGES.tolist()


def test_warmup_cosine_by_hand():
    # Ten steps, two of warm-up to 1: 1/2, 1, then cos over eight steps from 1 towards 0, half-way at step 6.
    rates = [warmup_cosine(step, 10, 2, 1.0) for step in range(10)]
    assert rates[:3] == [0.5, 1.0, 1.0]
    assert rates[6] == pytest.approx(0.5)
    assert rates[9] == pytest.approx((1 + math.cos(math.pi * 7 / 8)) / 2)
    assert np.all(np.diff(rates[2:]) < 0)
    assert warmup_cosine(0, 5, 0, 2.0) == 2.0


@pytest.mark.parametrize(
    "options",
    [
        {"learning_rate": 0.0},
        {"token_budget": 0},
        {"gradient_accumulation_steps": 0},
        {"gradient_accumulation_steps": 2, "token_budget": 512},
    ],
)
def test_options_that_make_no_sense(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        OptimizerConfig(**options)


@pytest.fixture
def model_with_dropout(tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(TINY_QWEN2, folder)
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "attention_dropout": 0.5}))
    return folder


def test_a_policy_trains_without_dropout(model_with_dropout, tmp_path):
    """The engine that samples has none: two passes agree, and with those of the model without dropout."""
    examples = [TokenExample((5, 6, 7), (8, 9, 10))]
    config = OptimizerConfig(token_budget=64)
    scores = [
        Learner(Policy.load(name), config, Ranks(), tmp_path).score(examples)[0]
        for name in (model_with_dropout, model_with_dropout, TINY_QWEN2)
    ]
    assert torch.equal(scores[0], scores[1])
    assert torch.equal(scores[0], scores[2])


def test_activation_checkpointing_of_a_model_with_dropout_is_refused(model_with_dropout):
    """transformers checkpoints in training mode alone, which turns dropout on."""
    with pytest.raises(UsageError, match="--activation-checkpointing: the model's config has attention_dropout"):
        Policy.load(model_with_dropout, activation_checkpointing=True)


def test_activation_checkpointing_keeps_the_rest_in_evaluation_mode():
    model = Policy.load(TINY_QWEN2, activation_checkpointing=True).model
    training = {type(module).__name__ for module in model.modules() if module.training}
    assert training == {"Qwen2DecoderLayer"}
