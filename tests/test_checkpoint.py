"""What a checkpoint holds of the weights, and what saving leaves behind."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from cs336_alignment.ranks import Ranks
from cs336_alignment.training.checkpoint import Checkpoints, Progress
from cs336_alignment.training.learner import Learner, OptimizerConfig
from cs336_alignment.training.policy import Policy
from tests.common import REPOSITORY
from tests.fakes import FakeLM, FakeTokenizer

EMBEDDED = REPOSITORY / "data/policy"


def test_a_tied_head_may_be_missing_and_nothing_else(tmp_path):
    policy = Policy.load(EMBEDDED, dtype="float32")
    assert policy.model.config.tie_word_embeddings
    policy.save(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    assert "lm_head.weight" not in weights  # and yet every weight comes back:
    other = Policy(AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(EMBEDDED)), policy.tokenizer)
    other.load_weights(weights)
    for name, tensor in policy.weights():
        assert torch.equal(dict(other.weights())[name], tensor), name
    del weights["model.norm.weight"]
    with pytest.raises(KeyError, match=r"the checkpoint has no model\.norm\.weight"):
        other.load_weights(weights)


def test_weights_lie_in_one_file_whatever_transformers_limit_is(tmp_path, monkeypatch):
    given = {}
    policy = Policy(FakeLM(), FakeTokenizer())
    monkeypatch.setattr(policy.model, "save_pretrained", lambda *_, **options: given.update(options))
    policy.save(tmp_path)
    assert given["max_shard_size"] == "1TB"


def test_saving_clears_what_a_kill_left_half_written(tmp_path):
    learner = Learner(Policy(FakeLM(), FakeTokenizer()), OptimizerConfig(), Ranks(), tmp_path)
    for step in (1, 7):
        half = tmp_path / "checkpoints" / f"step_{step}.partial"
        half.mkdir(parents=True)
        (half / "model.safetensors").write_bytes(b"half")
    Checkpoints(tmp_path).save(learner, Progress(step=10))
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_10"]
    assert json.loads((tmp_path / "checkpoints/step_10/progress.json").read_text())["step"] == 10
