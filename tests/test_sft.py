"""Tokenisation, log-probabilities, entropy, masked sums and the SFT step (handout section 4)."""

import math
import unicodedata
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import TypeCheckError

from cs336_alignment.numerics.aggregation import sequence_mean_weights
from cs336_alignment.numerics.log_probs import get_response_log_probs, sampling_logits
from cs336_alignment.numerics.masking import masked_mean
from cs336_alignment.numerics.tokenization import collate_prompt_and_output, padding_id
from cs336_alignment.training.microbatch import backward_token_losses, sft_microbatch_train_step
from tests import references, snapshot_cases
from tests.adapters import (
    run_compute_entropy,
    run_get_response_log_probs,
    run_masked_normalize,
    run_sft_microbatch_train_step,
    run_tokenize_prompt_and_output,
)
from tests.common import grad_of


def test_tokenize_prompt_and_output(numpy_snapshot, tokenizer):
    output = run_tokenize_prompt_and_output(snapshot_cases.PROMPTS, snapshot_cases.OUTPUTS, tokenizer)
    numpy_snapshot.assert_match(output)


def test_tokenize_prompt_and_output_by_hand():
    # Ids are the characters' codes. "ab" + "xyz" and "c" + "w", padded to 5 columns, then cut to 4:
    #   ids a b x y z    input a b x y    labels b x y z    response x y z are labels 1, 2, 3
    #       c w 0 0 0          c w 0 0           w 0 0 0    response w is label 0
    class CharacterTokenizer:
        pad_token_id, eos_token_id = 0, None

        def __call__(self, text, add_special_tokens=True):
            return {"input_ids": [ord(character) for character in text]}

    output = run_tokenize_prompt_and_output(["ab", "c"], ["xyz", "w"], CharacterTokenizer())
    a, b, c, w, x, y, z = map(ord, "abcwxyz")
    assert output["input_ids"].tolist() == [[a, b, x, y], [c, w, 0, 0]]
    assert output["labels"].tolist() == [[b, x, y, z], [w, 0, 0, 0]]
    assert output["response_mask"].tolist() == [[False, True, True, True], [True, False, False, False]]
    assert output["input_ids"].dtype == output["labels"].dtype == torch.int64
    assert output["response_mask"].dtype == torch.bool


def test_tokenize_prompt_and_output_bos_comes_with_the_prompt_alone(bos_tokenizer):
    output = run_tokenize_prompt_and_output(["Hello"], [" world"], bos_tokenizer)
    ids = [*output["input_ids"][0].tolist(), output["labels"][0, -1].item()]
    plain = bos_tokenizer("Hello", add_special_tokens=False)["input_ids"]
    response = bos_tokenizer(" world", add_special_tokens=False)["input_ids"]
    assert ids == [bos_tokenizer.bos_token_id, *plain, *response]


def test_tokenize_prompt_and_output_masks_by_length_when_pad_is_eos(tokenizer):
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    output = run_tokenize_prompt_and_output(["a", "a"], ["b" + tokenizer.eos_token, "bcdef"], tokenizer)
    real_eos = (output["labels"][0] == tokenizer.eos_token_id) & output["response_mask"][0]
    assert real_eos.sum() == 1
    assert output["response_mask"][0].sum() == 2


def test_tokenize_prompt_and_output_empty_response(tokenizer):
    output = run_tokenize_prompt_and_output(["Hello", "Hi"], ["", "there"], tokenizer)
    assert not output["response_mask"][0].any()
    assert output["response_mask"][1].any()


@pytest.mark.parametrize("prompts", [["one"], []])
def test_tokenize_prompt_and_output_refuses_unequal_or_no_rows(tokenizer, prompts):
    with pytest.raises(ValueError, match=f"got {len(prompts)} and {2 * len(prompts)}"):
        run_tokenize_prompt_and_output(prompts, ["x", "y"][: 2 * len(prompts)], tokenizer)


@given(pairs=st.lists(st.tuples(st.text(min_size=1, max_size=12), st.text(max_size=12)), min_size=1, max_size=4))
def test_tokenize_prompt_and_output_round_trip(tokenizer, pairs):
    # A byte-level tokenizer loses nothing but Unicode's choice of spelling (Qwen2's brings text into normal form C), so
    # the marked labels must decode to the outputs.
    prompts, outputs = zip(*pairs, strict=True)
    batch = run_tokenize_prompt_and_output(prompts, outputs, tokenizer)
    for ids, mask, output in zip(batch["labels"], batch["response_mask"], outputs, strict=True):
        decoded = tokenizer.decode(ids[mask], clean_up_tokenization_spaces=False)
        assert decoded == unicodedata.normalize("NFC", output)


def test_collate_prompt_and_output_refuses_unequal_rows():
    with pytest.raises(ValueError, match="zip"):
        collate_prompt_and_output([[1], [2]], [[3]], pad_id=0)


@pytest.mark.parametrize(("pad", "eos", "expected"), [(7, 3, 7), (None, 3, 3), (0, 3, 0), (None, None, 0)])
def test_padding_id(pad, eos, expected):
    assert padding_id(SimpleNamespace(pad_token_id=pad, eos_token_id=eos)) == expected


def test_compute_entropy(numpy_snapshot, inputs):
    numpy_snapshot.assert_match({"entropy": run_compute_entropy(inputs["logits"])})


def test_compute_entropy_by_hand():
    # Uniform over 4: log 4. Probabilities 3/4, 1/4: 2 log 2 - 3/4 log 3.
    logits = torch.tensor([[[0.0, 0.0, 0.0, 0.0], [math.log(3), 0.0, -math.inf, -math.inf]]])
    expected = torch.tensor([[math.log(4), 2 * math.log(2) - 0.75 * math.log(3)]])
    torch.testing.assert_close(run_compute_entropy(logits), expected, rtol=1e-6, atol=0)


def test_compute_entropy_against_reference(inputs):
    logits = inputs["logits"].requires_grad_()
    entropy = run_compute_entropy(logits)
    expected = references.entropy(logits.detach().double().numpy())
    np.testing.assert_allclose(entropy.detach(), expected, rtol=1e-5)
    entropy.sum().backward()
    expected = references.entropy_gradient(logits.detach().double().numpy())
    np.testing.assert_allclose(grad_of(logits), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("scale", [1, 5, 8, 12, 20])
def test_compute_entropy_and_log_probs_keep_their_digits_when_one_token_dominates(scale):
    # log(1 + 1e-9) is 0 in float32: the entropy and the log-probability of a sure token need more care than that.
    logits = (torch.randn(4, 16, 100, generator=torch.Generator().manual_seed(0)) * scale).requires_grad_()
    array = logits.detach().double().numpy()
    entropy = run_compute_entropy(logits)
    np.testing.assert_allclose(entropy.detach(), references.entropy(array), rtol=1e-5)
    labels = logits.argmax(dim=-1)
    output = run_get_response_log_probs(FixedLogits(logits.detach()), labels, labels, return_token_entropy=True)
    np.testing.assert_allclose(output["log_probs"].detach(), references.log_softmax(array).max(axis=-1), 1e-5, 1e-15)
    torch.testing.assert_close(output["token_entropy"], entropy, rtol=0, atol=0)
    entropy.sum().backward()
    np.testing.assert_allclose(grad_of(logits), references.entropy_gradient(array), rtol=1e-4, atol=1e-7)


def test_signatures_are_checked():
    with pytest.raises(TypeCheckError):
        masked_mean(torch.ones(2, 3), torch.ones(3))


def test_compute_entropy_extreme_logits():
    # Two tokens at 1e4 and one at -1e4: log 2, though exp(1e4) overflows and the logits' own rounding is 1e-3.
    logits = torch.tensor([[[1e4, 1e4, -1e4], [-1e4, -1e4, -1e4]]], requires_grad=True)
    entropy = run_compute_entropy(logits)
    torch.testing.assert_close(entropy, torch.tensor([[math.log(2), math.log(3)]]), rtol=1e-6, atol=0)
    entropy.sum().backward()
    assert torch.isfinite(grad_of(logits)).all()


def test_compute_entropy_gradient_with_impossible_tokens():
    logits = torch.tensor([[[1.0, 2.0, -math.inf]]], dtype=torch.float64, requires_grad=True)
    run_compute_entropy(logits).sum().backward()
    expected = references.entropy_gradient(np.array([1.0, 2.0]))
    np.testing.assert_allclose(grad_of(logits)[0, 0], [*expected, 0.0], rtol=1e-12)


def test_compute_entropy_takes_bfloat16_to_float32():
    logits = torch.randn(2, 3, 11, generator=torch.Generator().manual_seed(0)).bfloat16()
    entropy = run_compute_entropy(logits)
    assert entropy.dtype == torch.float32
    np.testing.assert_allclose(entropy, references.entropy(logits.double().numpy()), rtol=1e-5)


def test_compute_entropy_gradcheck():
    logits = torch.randn(2, 2, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(run_compute_entropy, logits)


def test_get_response_log_probs(numpy_snapshot, model, tokenizer):
    batch = run_tokenize_prompt_and_output(snapshot_cases.PROMPTS, snapshot_cases.OUTPUTS, tokenizer)
    with torch.no_grad():
        output = run_get_response_log_probs(model, batch["input_ids"], batch["labels"], return_token_entropy=True)
    numpy_snapshot.assert_match(output)


class FixedLogits(torch.nn.Module):
    """A model that answers any input with the same logits."""

    def __init__(self, logits):
        super().__init__()
        self.logits = torch.nn.Parameter(logits)

    def forward(self, input_ids):
        return SimpleNamespace(logits=self.logits)


def test_get_response_log_probs_against_reference():
    logits = torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(1)) * 5
    labels = torch.tensor([[0, 6, 3], [2, 2, 5]])
    model = FixedLogits(logits)
    output = run_get_response_log_probs(model, labels, labels, return_token_entropy=False)
    assert set(output) == set(get_response_log_probs(model, labels, labels)) == {"log_probs"}
    log_p = references.log_softmax(logits.double().numpy())
    expected = np.take_along_axis(log_p, labels.numpy()[..., None], -1)[..., 0]
    np.testing.assert_allclose(output["log_probs"].detach(), expected, rtol=1e-5, atol=1e-7)
    # d log p_label / dz = 1[v = label] - p_v
    output["log_probs"].sum().backward()
    expected = np.eye(7)[labels] - np.exp(log_p)
    np.testing.assert_allclose(grad_of(model.logits), expected, rtol=1e-5, atol=1e-7)


def test_get_response_log_probs_bfloat16_logits_and_impossible_tokens():
    logits = torch.tensor([[[1.0, 2.0, -math.inf], [1e4, -1e4, 0.0]]]).bfloat16()
    output = run_get_response_log_probs(FixedLogits(logits), torch.tensor([[0, 0]]), torch.tensor([[1, 0]]), True)
    assert output["log_probs"].dtype == torch.float32
    expected = torch.tensor([[-math.log1p(math.exp(-1)), 0.0]])
    torch.testing.assert_close(output["log_probs"], expected, rtol=1e-6, atol=1e-7)
    assert torch.isfinite(output["token_entropy"]).all()


def test_get_response_log_probs_ignores_right_padding(model, tokenizer):
    texts = ["a", "b"], ["short", "a much longer answer"]
    both = run_tokenize_prompt_and_output(*texts, tokenizer)
    alone = run_tokenize_prompt_and_output(texts[0][:1], texts[1][:1], tokenizer)
    with torch.no_grad():
        padded = run_get_response_log_probs(model, both["input_ids"], both["labels"], False)["log_probs"][0]
        exact = run_get_response_log_probs(model, alone["input_ids"], alone["labels"], False)["log_probs"][0]
    torch.testing.assert_close(padded[both["response_mask"][0]], exact[alone["response_mask"][0]], rtol=1e-5, atol=1e-6)


def test_sampling_logits_by_hand():
    logits = torch.tensor([[2.0, 4.0, 6.0]]).bfloat16()
    scaled = sampling_logits(logits, temperature=2.0, vocab_size=2)
    assert scaled.dtype == torch.float32
    assert scaled.tolist() == [[1.0, 2.0, -math.inf]]
    three_dimensional = sampling_logits(logits.expand(1, 2, 3), vocab_size=2)
    assert three_dimensional.tolist() == [[[2.0, 4.0, -math.inf]] * 2]
    assert sampling_logits(logits).tolist() == [[2.0, 4.0, 6.0]]
    assert sampling_logits(logits, vocab_size=3).tolist() == [[2.0, 4.0, 6.0]]
    for temperature in (0.0, -1.0):
        with pytest.raises(ValueError, match="temperature must be positive"):
            sampling_logits(logits, temperature)


def test_masked_normalize_dim0(numpy_snapshot, inputs):
    numpy_snapshot.assert_match({"sum": run_masked_normalize(inputs["tensor"], inputs["mask"], 0, 42.0)})


def test_masked_normalize_dim1(numpy_snapshot, inputs):
    numpy_snapshot.assert_match({"sum": run_masked_normalize(inputs["tensor"], inputs["mask"], 1, 42.0)})


def test_masked_normalize_dimlast(numpy_snapshot, inputs):
    numpy_snapshot.assert_match({"sum": run_masked_normalize(inputs["tensor"], inputs["mask"], -1, 42.0)})


def test_masked_normalize_dimNone(numpy_snapshot, inputs):
    numpy_snapshot.assert_match({"sum": run_masked_normalize(inputs["tensor"], inputs["mask"], None, 42.0)})


def test_masked_normalize_defaults_and_integer_mask():
    tensor = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    mask = torch.tensor([[1, 0], [1, 1]])
    assert run_masked_normalize(tensor, mask).item() == 8.0
    assert run_masked_normalize(tensor, mask, dim=1, normalize_constant=2.0).tolist() == [0.5, 3.5]


def test_masked_normalize_ignores_what_it_masks():
    # inf * 0 is NaN; a masked inf must disappear, in the value and in the gradient.
    tensor = torch.tensor([[1.0, math.inf, math.nan]], requires_grad=True)
    total = run_masked_normalize(tensor, torch.tensor([[True, False, False]]), dim=1)
    total.sum().backward()
    assert total.tolist() == [1.0]
    assert grad_of(tensor).tolist() == [[1.0, 0.0, 0.0]]


def test_masked_normalize_all_masked_is_zero():
    assert run_masked_normalize(torch.ones(2, 3), torch.zeros(2, 3, dtype=torch.bool), dim=1).tolist() == [0.0, 0.0]


def test_masked_normalize_gradcheck():
    tensor = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    mask = torch.rand(3, 4) < 0.5
    assert torch.autograd.gradcheck(lambda values: run_masked_normalize(values, mask, 1, 7.0), tensor)


def test_sft_microbatch_train_step(numpy_snapshot, inputs):
    loss, _ = run_sft_microbatch_train_step(
        inputs["policy_log_probs"], inputs["mask"], snapshot_cases.GRADIENT_ACCUMULATION_STEPS, 1.0
    )
    numpy_snapshot.assert_match({"loss": loss, "gradient": grad_of(inputs["policy_log_probs"])})


def test_sft_microbatch_train_step_normalize(numpy_snapshot, inputs):
    loss, _ = run_sft_microbatch_train_step(
        inputs["policy_log_probs"], inputs["mask"], snapshot_cases.GRADIENT_ACCUMULATION_STEPS, 100.0
    )
    numpy_snapshot.assert_match({"loss": loss, "gradient": grad_of(inputs["policy_log_probs"])})


def test_sft_microbatch_train_step_10_steps(numpy_snapshot, inputs):
    # Gradients of ten steps add up; the loss of each is the same.
    losses = [
        run_sft_microbatch_train_step(
            inputs["policy_log_probs"], inputs["mask"], snapshot_cases.GRADIENT_ACCUMULATION_STEPS
        )[0]
        for _ in range(10)
    ]
    assert len({loss.item() for loss in losses}) == 1
    numpy_snapshot.assert_match({"loss": losses[0], "gradient": grad_of(inputs["policy_log_probs"])})


def test_sft_microbatch_train_step_by_hand():
    # Sums over the response: -1 - 2 = -3 and -5. Over constant 2: -1.5 and -2.5. Mean -2, negated, over 4 steps: 0.5.
    # Each response token's gradient: -1 / (2 rows * 4 steps * constant 2) = -1/16.
    log_probs = torch.tensor([[-1.0, -2.0, -9.0], [-9.0, -9.0, -5.0]], requires_grad=True)
    mask = torch.tensor([[1, 1, 0], [0, 0, 1]])
    loss, metadata = run_sft_microbatch_train_step(log_probs, mask, 4, 2.0)
    assert loss.item() == 0.5
    assert not loss.requires_grad
    assert grad_of(log_probs).tolist() == [[-1 / 16, -1 / 16, 0.0], [0.0, 0.0, -1 / 16]]
    assert metadata["response_tokens"].item() == 3


def test_sft_losses_are_not_rescaled_by_default():
    log_probs = torch.tensor([[-1.0, -2.0]], requires_grad=True)
    mask = torch.ones(1, 2)
    assert sft_microbatch_train_step(log_probs, mask, 1)[0].item() == 3.0


@pytest.mark.parametrize("rows", [1, 3])
def test_sft_microbatch_train_step_against_reference(rows):
    generator = torch.Generator().manual_seed(rows)
    log_probs = torch.randn(rows, 6, generator=generator).requires_grad_()
    mask = torch.rand(rows, 6, generator=generator) < 0.5
    mask[0] = False  # an empty response
    loss, _ = run_sft_microbatch_train_step(log_probs, mask, 3, 5.0)
    expected, gradient = references.sft_step(log_probs.detach().double().numpy(), mask.numpy(), 3, 5.0)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(grad_of(log_probs), gradient, rtol=1e-5)


def test_sft_microbatch_train_step_bfloat16():
    # Numbers that bfloat16 holds; 1 / (3 sequences * 7 steps) it does not: the loss is float32.
    log_probs = torch.tensor([[-1.0, -2.0], [-0.5, -4.0], [-3.0, -1.0]]).bfloat16().requires_grad_()
    loss, _ = run_sft_microbatch_train_step(log_probs, torch.ones(3, 2, dtype=torch.bool), 7)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx((3 + 4.5 + 4) / 21, rel=1e-6)
    torch.testing.assert_close(grad_of(log_probs), torch.full((3, 2), -1 / 21).bfloat16(), rtol=0, atol=0)


def test_any_split_into_microbatches_gives_the_same_gradient():
    # Lengths 2, 1 and 4. Whole: mean of the sequences' means = ((1 + 3) / 2 + 6 + (4 * 2) / 4) / 3 = 10/3; a token's
    # gradient is 1 / (3 * its sequence's length). The weights come from the whole batch, whatever the split.
    mask = torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1]])
    weights = sequence_mean_weights(mask.sum(dim=1))
    expected = torch.tensor([[1 / 6, 1 / 6, 0, 0], [1 / 3, 0, 0, 0], [1 / 12] * 4])
    for split in ([3], [2, 1], [1, 1, 1]):
        losses = torch.tensor([[1.0, 3, 9, 9], [6, 9, 9, 9], [2, 2, 2, 2]], requires_grad=True)
        parts = zip(losses.split(split), mask.split(split), weights.split(split), strict=True)
        assert sum(backward_token_losses(*part).item() for part in parts) == pytest.approx(10 / 3)
        torch.testing.assert_close(grad_of(losses), expected, rtol=1e-6, atol=0)
