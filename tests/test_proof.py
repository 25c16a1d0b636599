"""The rollout engine's proof: it passes after a sync, and fails for each way in which one goes wrong."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from cs336_alignment.rollout.proof import StalePolicyError, prove_policy
from cs336_alignment.rollout.transformers_engine import TransformersEngine
from cs336_alignment.training.distributed import Ranks
from cs336_alignment.training.learner import Learner, OptimizerConfig
from cs336_alignment.training.packing import TokenExample
from cs336_alignment.training.policy import Policy
from tests.common import TINY_QWEN2

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
    tokenizer = learner.policy.tokenizer

    def score(prompts, completions):
        return learner.score(
            [
                TokenExample(tuple(tokenizer(prompt)["input_ids"]), completion.token_ids)
                for prompt, completion in zip(prompts, completions, strict=True)
            ]
        )

    return prove_policy(engine, learner.policy.weights(), version, PROMPTS, score, seed=3)


def test_the_proof_passes_after_a_sync(engine, learner):
    engine.load_policy(learner.policy.weights(), 5)
    proof = prove(engine, learner, 5)
    assert 0 < proof.proof_mean_difference <= proof.proof_largest_difference < 1e-4


def test_a_skipped_sync_shows_in_the_version(engine, learner):
    with pytest.raises(StalePolicyError, match="version 0, not 5"):
        prove(engine, learner, 5)


def test_a_sync_in_name_only_shows_in_the_weights(engine, learner):
    engine.load_policy(dict(AutoModelForCausalLM.from_pretrained(TINY_QWEN2).state_dict()).items(), 5)
    with pytest.raises(StalePolicyError, match="sums to"):
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
    with pytest.raises(StalePolicyError, match="log-probs differ"):
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
    engine.held_weights = lambda: {"packed": 1.0}
    with pytest.raises(StalePolicyError, match="none of the trainer's weights"):
        prove(engine, learner, 5)
