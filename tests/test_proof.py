"""The rollout engine's proof: it passes after a sync, and fails for each way in which one goes wrong."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from cs336_alignment.ranks import Ranks
from cs336_alignment.rollout.engine import SUMMED_AT_ONCE, Completion, NonFiniteLogProbError, Sampling, WeightSum
from cs336_alignment.rollout.proof import PROOF_TOKENS, StalePolicyError, check_sampler, prove_policy
from cs336_alignment.rollout.transformers_engine import TransformersEngine
from cs336_alignment.training.learner import Learner, OptimizerConfig
from cs336_alignment.training.packing import TokenExample
from cs336_alignment.training.policy import Policy
from tests.common import TINY_QWEN2

PROOF = Sampling(max_tokens=PROOF_TOKENS, stop=(), seed=3)
PROMPTS = ["Natalia sold 48 clips in April.", "The quick brown fox", "jumps over the lazy dog. " * 8]


@pytest.fixture
def learner(tmp_path):
    """A trainer whose policy has moved away from the engine's first weights."""
    policy = Policy.load(TINY_QWEN2)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return Learner(policy, OptimizerConfig(gradient_accumulation_steps=1), Ranks(), tmp_path)


@pytest.fixture
def engine():
    with TransformersEngine(TINY_QWEN2) as engine:
        yield engine


def prove(engine, learner, version):
    return prove_policy(
        engine, learner.policy.weight_sums(torch.float32), version, PROMPTS, partial(score, learner), seed=3
    )


def score(learner, prompts, completions, scale):
    tokenizer = learner.policy.tokenizer
    learner.policy.temperature = 1 / scale
    return learner.score(
        [
            TokenExample(tuple(tokenizer(prompt)["input_ids"]), completion.token_ids)
            for prompt, completion in zip(prompts, completions, strict=True)
        ]
    )


def test_the_proof_passes_after_a_sync(engine, learner):
    engine.load_policy(learner.policy.weights(), 5)
    proof = prove(engine, learner, 5)
    assert 0 < proof.proof_mean_difference <= proof.proof_largest_difference < 1e-4


def test_a_skipped_sync_shows_in_the_version(engine, learner):
    with pytest.raises(StalePolicyError, match="version 0, not 5"):
        prove(engine, learner, 5)


def test_a_sync_in_name_only_shows_in_the_weights(engine, learner):
    engine.load_policy(dict(AutoModelForCausalLM.from_pretrained(TINY_QWEN2).state_dict()).items(), 5)
    with pytest.raises(StalePolicyError, match=r"holds other weights: its .* sums to"):
        prove(engine, learner, 5)


def test_a_tied_head_left_behind_shows(engine, learner):
    """As an engine would keep it that packs the head apart from the embedding: only the log-probs can tell."""
    old_head = torch.nn.Linear(64, 352, bias=False)
    old_head.weight.data = engine.model.lm_head.weight.detach().clone()
    engine.load_policy(learner.policy.weights(), 5)
    held = engine.held_weights()
    del held["lm_head.weight"]
    engine.held_weights = lambda: held
    engine.model.lm_head = old_head
    with pytest.raises(StalePolicyError, match=r"log-probs differ .*a tied head that was left out"):
        prove(engine, learner, 5)


def test_weights_in_the_wrong_places_show_in_the_log_probs(engine, learner):
    """Sums do not see a permutation."""
    weights = dict(learner.policy.weights())
    name = "model.layers.0.mlp.up_proj.weight"
    engine.load_policy({**weights, name: weights[name].flip(0)}.items(), 5)
    with pytest.raises(StalePolicyError, match="log-probs differ"):
        prove(engine, learner, 5)


def test_an_engine_that_holds_nothing_by_name(engine, learner):
    engine.load_policy(learner.policy.weights(), 5)
    engine.held_weights = lambda: {"packed": [WeightSum(1, 1.0, 1.0)]}
    with pytest.raises(StalePolicyError, match="none of the trainer's weights"):
        prove(engine, learner, 5)


def test_scaled_logits_are_told_apart(engine, learner):
    """As an engine that leaves a logit scale out, or samples at another temperature than it says."""
    engine.load_policy(learner.policy.weights(), 5)
    generate = engine.generate
    engine.generate = lambda prompts, sampling: generate(prompts, replace(sampling, temperature=0.5))
    with pytest.raises(StalePolicyError, match=r"its logits are the trainer's times about 2, as by another"):
        prove(engine, learner, 5)


def test_dropout_in_the_trainer_is_told_apart(engine, learner):
    engine.load_policy(learner.policy.weights(), 5)
    body = learner.policy.model.base_model
    body.norm = torch.nn.Sequential(body.norm, torch.nn.Dropout(0.5))
    with pytest.raises(StalePolicyError, match="dropout, or another random layer, is on"):
        prove(engine, learner, 5)


def test_kept_keys_are_told_apart(engine, learner):
    """An engine that answers from older weights until it forgets what it has seen."""
    stale = dict(zip(PROMPTS, engine.generate(PROMPTS, PROOF), strict=True))
    engine.load_policy(learner.policy.weights(), 5)
    generate = engine.generate
    engine.generate = lambda prompts, sampling: [*stale.values()] if stale else generate(prompts, sampling)
    engine.forget_prompts = stale.clear
    with pytest.raises(StalePolicyError, match="its prefix cache was not reset"):
        prove(engine, learner, 5)


def test_a_diverged_policy_is_not_called_stale(engine, learner):
    """Weights a thousand times as large: log-probs of thousands of nats, whose rounding is above a thousandth."""
    with torch.no_grad():
        learner.policy.model.get_output_embeddings().weight.mul_(1000)
    engine.load_policy(learner.policy.weights(), 5)
    assert prove(engine, learner, 5).proof_largest_difference < 1e-3


def test_shards_of_a_weight_add_up(engine, learner):
    """Two tensor-parallel ranks: one weight cut in two, another whole on both; then a shard out of step."""
    engine.load_policy(learner.policy.weights(), 5)
    weights = dict(learner.policy.weights())
    cut, whole = "model.layers.0.mlp.down_proj.weight", "model.norm.weight"
    halves = [WeightSum.of(half) for half in weights[cut].chunk(2, dim=1)]
    held = {cut: halves, whole: [WeightSum.of(weights[whole])] * 2}
    engine.held_weights = lambda: held
    prove(engine, learner, 5)
    held[cut] = [halves[0], halves[0]]
    with pytest.raises(StalePolicyError, match="down_proj"):
        prove(engine, learner, 5)
    held[cut] = halves
    held[whole] = [held[whole][0], replace(held[whole][0], total=0.0)]
    with pytest.raises(StalePolicyError, match=r"model\.norm"):
        prove(engine, learner, 5)


def test_another_ranks_verdict_is_this_ranks_too(engine, learner):
    engine.load_policy(learner.policy.weights(), 5)
    sums = learner.policy.weight_sums(torch.float32)
    with pytest.raises(StalePolicyError, match="rank 3 holds another"):
        prove_policy(
            engine, sums, 5, PROMPTS, partial(score, learner), seed=3, agree=lambda mine: mine or "rank 3 holds another"
        )


def test_a_checksum_takes_no_copy_in_float64():
    """torch converts what it sums: of a whole embedding 8 bytes a number, beside an engine that is awake."""
    weight = torch.randn(2**25).bfloat16()
    with torch.profiler.profile(profile_memory=True) as profiler:
        WeightSum.of(weight)
    largest = max(event.self_cpu_memory_usage for event in profiler.events() or [])
    assert largest <= 8 * SUMMED_AT_ONCE < 8 * len(weight) / 4


def test_a_checksum_equals_one_in_float64():
    weight = torch.randn(7, 5).bfloat16()
    exact = weight.double().numpy()
    found = WeightSum.of(weight)
    assert (found.numel, found.total) == (35, pytest.approx(exact.sum(), rel=1e-14))
    assert found.magnitude == pytest.approx(np.abs(exact).sum(), rel=1e-14)


def test_a_log_prob_that_is_no_number_is_an_error():
    for broken in (float("nan"), float("-inf")):
        with pytest.raises(NonFiniteLogProbError, match=r"log-prob of .* for token 2 of 2 of the response 'ab'"):
            Completion("ab", (1, 2), (-0.5, broken), "stop")


def apart(by, tokens, of=-0.5):
    """The trainer's log-probs of a response, and an engine's that are so far from them."""
    return torch.full((tokens,), of), (of - by,) * tokens


def check(dtype, *responses, skipped=0):
    return check_sampler(dtype, [trainer for trainer, _ in responses], [sampler for _, sampler in responses], skipped)


def test_the_sampler_is_compared_over_every_token():
    """In float32 a mean of 1e-4 warns, and one of 1e-3 stops. Below -1 nat differences are relative."""
    near = check("float32", apart(0.0002, 2, of=-4.0))
    assert near.mean == pytest.approx(0.0002 / 4, rel=1e-2)
    assert (near.alarm, near.stops, near.offending) == (False, False, [])
    warned = check("float32", apart(0.0005, 2))
    assert (warned.alarm, warned.stops) == (True, False)
    far = check("float32", apart(0, 2), apart(0.003, 2))
    assert (far.alarm, far.stops, far.offending) == (True, True, [1])
    # bfloat16 rounds more.
    assert not check("bfloat16", apart(0.003, 2)).alarm
    assert check("bfloat16", apart(0.06, 2)).alarm
    assert check("bfloat16", apart(0.11, 2)).stops


@pytest.mark.parametrize(("dtype", "limit"), [("float32", 1e-2), ("bfloat16", 0.2)])
def test_one_response_that_is_spoilt_is_found_among_many(dtype, limit):
    """Its limit holds from 64 tokens on, is twice as wide at 16, and below there is none: an unlikely token decides."""
    many = [apart(0, 100)] * 200
    for tokens, factor in ((64, 1.0), (200, 1.0), (16, 2.0)):
        assert not check(dtype, *many, apart(0.9 * factor * limit, tokens)).stops
        found = check(dtype, *many, apart(1.1 * factor * limit, tokens))
        assert (found.stops, found.offending) == (True, [200])
    assert not check(dtype, *many, apart(1.0, 1)).stops


def test_tokens_at_which_eos_was_masked_are_left_out():
    trainer, sampler = [torch.tensor([-0.9, -0.5]), torch.tensor([-0.9])], [(-0.1, -0.5), (-0.1,)]
    assert check_sampler("float32", trainer, sampler).stops
    assert check_sampler("float32", trainer, sampler, skipped=1).mean == 0.0
    assert check_sampler("float32", trainer, sampler, skipped=2).mean is None
