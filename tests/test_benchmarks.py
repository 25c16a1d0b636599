"""The parts of the benchmarks that can be wrong without anyone noticing; they themselves are run by hand."""

import argparse
import json

import pytest
import torch

from scripts.benchmarks import grpo_step, log_probs, optimizer_step, rollout, sft_step, side_by_side
from tests.common import grad_of

OTHERS = {"products", "trl", "trl_fused"}


@pytest.mark.parametrize("name", sorted(set(log_probs.VARIANTS) - OTHERS))
def test_the_log_prob_variants_agree(name):
    options = log_probs.parse(["--tokens", "12", "--hidden", "6", "--vocab", "20", "--sequences", "3"])
    found, expected = log_probs.Inputs(options), log_probs.Inputs(options)
    scores = log_probs.VARIANTS[name](found)
    log_p = (expected.hidden.double() @ expected.weight.double().T).log_softmax(dim=1)
    log_p = log_p.gather(1, expected.labels.unsqueeze(1)).squeeze(1)
    (-expected.factors * log_p).sum().backward()
    torch.testing.assert_close(scores.double(), log_p.detach(), rtol=1e-5, atol=1e-6)
    for leaf, reference in ((found.hidden, expected.hidden), (found.weight, expected.weight)):
        torch.testing.assert_close(grad_of(leaf), grad_of(reference), rtol=1e-4, atol=1e-6)


def test_rollouts_are_padded_as_trl_pads_them():
    examples = [grpo_step.TokenExample((5,), (6, 7)), grpo_step.TokenExample((3, 4), (8,))]
    rows = grpo_step.padded_rollouts(examples, torch.tensor([1.0, -1.0]), pad=0)
    assert rows["prompt_ids"].tolist() == [[0, 5], [3, 4]]
    assert rows["prompt_mask"].tolist() == [[0, 1], [1, 1]]
    assert rows["completion_ids"].tolist() == [[6, 7], [8, 0]]
    assert rows["completion_mask"].tolist() == [[1, 1], [1, 0]]
    assert rows["num_items_in_batch"] == 3


def test_a_variant_names_its_microbatch_size():
    options = argparse.Namespace(microbatches=[1, 16])
    assert [grpo_step.microbatch_size(name) for name in grpo_step.variants(options)] == [1, 16]
    assert len(sft_step.variants(options)) == 4


def test_arguments_become_options_again():
    options = argparse.Namespace(group_size=8, dtype="float32", rounds=3)
    assert side_by_side.command_line(options, but=("rounds",)) == ["--group-size", "8", "--dtype", "float32"]


def test_relative_difference_by_hand():
    assert side_by_side.relative_difference(torch.tensor([3.0, 4.5]), torch.tensor([3.0, 4.0])) == 0.1


@pytest.mark.parametrize(
    ("operator", "kind"),
    [
        ("aten::addmm_", "matrix products"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu_backward", "attention"),
        ("aten::_fused_adamw_", "optimiser"),
        ("aten::mul", "elementwise, copies and the rest"),
    ],
)
def test_kinds_of_operators(operator, kind):
    assert optimizer_step.kind_of(operator) == kind


def test_tokens_count_up_to_the_end_of_a_row():
    assert rollout.count_tokens([[5, 9, 0, 0], [5, 6, 7, 8], [9, 9, 9, 9]], ends={9}) == 2 + 4 + 1


def test_ratios_are_taken_within_a_round():
    fast = [{"tokens": 30, "seconds": 1.0, "cpu_seconds": 2.0}, {"tokens": 30, "seconds": 3.0, "cpu_seconds": 2.0}]
    slow = [{"tokens": 10, "seconds": 1.0, "cpu_seconds": 1.0}, {"tokens": 20, "seconds": 4.0, "cpu_seconds": 1.0}]
    assert rollout.ratios(fast, slow, "seconds") == [3.0, 2.0]
    lines = rollout.ratio_table({"transformers engine": fast, "generate": slow})
    assert lines[2:] == ["| transformers engine / generate | 2.50 (2.00 to 3.00) | 1.12 (0.75 to 1.50) |"]


@pytest.mark.parametrize("variant", ["transformers engine", "generate"])
def test_a_rollout_variant_runs(variant, tmp_path, monkeypatch):
    """On the embedded policy, which has no chat format, a few tokens each, in two batches."""
    result = tmp_path / "result.json"
    monkeypatch.setattr(rollout, "LEAST_SEQUENCES", 4)
    monkeypatch.setattr(
        rollout, "chat_prompts", lambda problems, tokenizer, count: ["One and", "Two and two"] * (count // 2)
    )
    options = f"--model data/policy --dtype float32 --max-tokens 4 --sequences 2 --result {result}".split()
    rollout.measure(rollout.parse([*options, "--variant", variant]))
    measurement = json.loads(result.read_text())
    assert 4 <= measurement["tokens"] <= 16
    assert measurement["seconds"] > 0
