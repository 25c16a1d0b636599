"""The parts of the benchmarks that can be wrong without anyone noticing; they themselves are run by hand."""

import argparse
import json

import pytest
import torch

from cs336_alignment.training import packing
from cs336_alignment.training.memory import ModelShape
from cs336_alignment.training.packing import Layout, Segment
from scripts.benchmarks import gpu_step, grpo_step, log_probs, optimizer_step, rollout, sft_step, side_by_side
from tests.common import grad_of
from tests.test_varlen import KERNELS

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


IN_SMALL = (
    "--device cpu --layers 2 --hidden 64 --intermediate 96 --heads 4 --kv-heads 2 --vocab 500 --token-budget 200 "
    "--prompt-tokens 20 --response-tokens 15 --rounds 1 --peak-tflops 0.5"
).split()


@pytest.mark.parametrize("kernel", ["torch 2.13", None])
def test_the_gpu_benchmark_in_small_through_both_paths(monkeypatch, tmp_path, capsys, kernel):
    """As on a GPU, with a reference in the place of the kernel, and as on a CPU."""
    if kernel:
        monkeypatch.setattr(packing, "choose_kernel", lambda *_: KERNELS[kernel])
    result = tmp_path / "result.json"
    gpu_step.main([*IN_SMALL, "--result", str(result)])
    figures = json.loads(result.read_text())
    paths = ["kernel", "segments"] if kernel else ["segments"]
    assert [one["path"] for one in figures["step"]] == [one["path"] for one in figures["attention"]] == paths
    for one in figures["step"]:
        # A prompt of 20 and 8 responses of 14 inputs; of the next prompt 8 more, and 4 responses: 196 of 200.
        assert one["tokens"] == 20 + 8 * 14 + 8 + 4 * 14
        assert one["mfu"] == pytest.approx(one["tflops"] / 0.5)
    for one in figures["attention"]:
        # bfloat16 has 8 bits; a wrong mask or scale would be off by tens of per cent.
        assert all(1e-4 < one[name] < 0.03 for name in ("output", "query", "key", "value"))
    assert ("no attention kernel" in capsys.readouterr().out) == (kernel is None)


def test_flops_by_hand():
    shape = ModelShape(
        *(0, 1000),  # parameters of all and of a layer
        *(8, 32, 50),  # hidden, intermediate, vocab
        *(2, 4, 2, 16, 99),  # layers, heads, key heads, width of a head, positions
        tied=False,
        norms_after=False,
    )
    layout = Layout((Segment(3), Segment(2, (0,))))
    # Pairs: 1 + 2 + 3 in the first segment, 4 + 5 in the one that follows it. Four tokens are predicted.
    assert gpu_step.flops(shape, layout, 4) == 6 * 5 * 2 * 1000 + 6 * 4 * 50 * 8 + 12 * 2 * 4 * 16 * 15


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA A100-SXM4-40GB", 312),
        ("NVIDIA A10", 125),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA A100-SXM4-40GB MIG 3g.20gb", None),
        ("CPU", None),
    ],
)
def test_a_gpus_peak_by_its_name(name, peak):
    assert gpu_step.peak_tflops(name) == peak


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_the_gpu_benchmark_wants_a_gpu(capsys):
    with pytest.raises(SystemExit) as stopped:
        gpu_step.main([])
    assert stopped.value.code == 2
    assert "there is no GPU here" in capsys.readouterr().err


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
