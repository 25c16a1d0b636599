"""Packed rows against each sequence run alone: the same log-probs and gradients, with prompts computed once."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM

from cs336_alignment.numerics.log_probs import get_response_log_probs
from cs336_alignment.training.packing import (
    PACKED_ATTENTION,
    Layout,
    Segment,
    TokenExample,
    pack,
    packed_attention,
    packed_tokens,
    stem_length,
)
from cs336_alignment.training.policy import Policy
from tests.common import TINY_QWEN2, grad_of
from tests.fakes import FakeLM, FakeTokenizer

A, B = (1, 2, 3), (4, 5)
EXAMPLES = [
    TokenExample(A, (6, 7, 8, 9)),
    TokenExample(B, (10,)),
    TokenExample(A, (11, 12)),
    TokenExample(B, (13, 14, 15)),
]


def test_the_layout_of_a_row_by_hand():
    batch = pack(EXAMPLES)
    # Prompt A, its two responses without their last tokens, prompt B, its two (the first has no token left).
    assert batch.input_ids.tolist() == [[1, 2, 3, 6, 7, 8, 11, 4, 5, 13, 14]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 5, 3, 0, 1, 2, 3]]
    assert batch.labels.tolist() == [6, 7, 8, 9, 10, 11, 12, 13, 14, 15]
    # Each first token is predicted by the end of its prompt: place 2 for A, 8 for B.
    assert batch.predictors.tolist() == [2, 3, 4, 5, 8, 2, 6, 8, 9, 10]
    assert batch.lengths == (4, 1, 2, 3)
    one, other = (0, 1), (0, 4)
    assert batch.layout.segments == (
        *(Segment(0), Segment(3, (0,)), Segment(3, one), Segment(1, one)),
        *(Segment(2, (0,)), Segment(0, other), Segment(2, other)),
    )
    assert batch.row_tokens == packed_tokens(EXAMPLES) == 11


STEMMED = [TokenExample((1, 2, 3, 4), (5, 6)), TokenExample((1, 2, 7), (8, 9)), TokenExample((1, 2, 7), (8, 10))]


def test_what_prompts_begin_with_is_laid_once():
    batch = pack(STEMMED)
    assert batch.input_ids.tolist() == [[1, 2, 3, 4, 5, 7, 8, 8]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 2, 3, 3]]
    assert batch.predictors.tolist() == [3, 4, 5, 6, 5, 7]
    assert batch.layout.segments == (
        *(Segment(2), Segment(2, (0,)), Segment(1, (0, 1))),
        *(Segment(1, (0,)), Segment(1, (0, 3)), Segment(1, (0, 3))),
    )
    assert batch.row_tokens == packed_tokens(STEMMED) == 8
    order, bounds = batch.layout.varlen(torch.device("cpu"))
    # Keys of: the stem | it and 3, 4 | these and 5 | the stem and 7 | these and 8 | and the other 8
    assert order.tolist() == [0, 1, 0, 1, 2, 3, 0, 1, 2, 3, 4, 0, 1, 5, 0, 1, 5, 6, 0, 1, 5, 7]
    assert bounds.keys.tolist() == [0, 2, 6, 11, 14, 18, 22]


def test_the_stem_leaves_each_prompt_a_token():
    assert stem_length([(1, 2, 3, 4), (1, 2, 7)]) == 2
    assert stem_length([(1, 2), (1, 2, 7), (1, 2, 8)]) == 1
    assert stem_length([(1,), (1, 2)]) == 0
    assert stem_length([(1, 2, 3), (2, 2, 3)]) == 0
    assert stem_length([(1, 2, 3), (1, 2, 3)]) == 0
    assert stem_length([]) == 0


def test_varlen_arrays_by_hand():
    order, bounds = pack(EXAMPLES).layout.varlen(torch.device("cpu"))
    # Keys of: A | A and 3 | A and 1 | B | B and 2. Neither the empty stem nor B's first response has a token.
    assert order.tolist() == [0, 1, 2, 0, 1, 2, 3, 4, 5, 0, 1, 2, 6, 7, 8, 7, 8, 9, 10]
    assert bounds.queries.tolist() == [0, 3, 6, 7, 9, 11]
    assert bounds.keys.tolist() == [0, 3, 9, 13, 15, 19]
    assert bounds.queries.dtype == bounds.keys.dtype == torch.int32
    assert (bounds.longest_query, bounds.longest_key) == (3, 6)


def alone(model, example, vocab_size):
    """Log-probs of one example's response, in a row of its own, through the handout's function."""
    ids = torch.tensor([[*example.prompt_ids, *example.response_ids]])

    class Sliced:
        """The padded vocabulary left out, as sampling and training leave it out."""

        def __call__(self, input_ids):
            output = model(input_ids)
            output.logits = output.logits[..., :vocab_size]
            return output

    log_probs = get_response_log_probs(Sliced(), ids[:, :-1], ids[:, 1:])["log_probs"][0]
    return log_probs[len(example.prompt_ids) - 1 :]


@pytest.mark.parametrize("stem", [(), (9, 8, 7, 6, 5)], ids=["no stem", "stem"])
@pytest.mark.parametrize("activation_checkpointing", [False, True])
def test_packed_log_probs_and_gradients_on_a_tiny_qwen2(model, activation_checkpointing, stem):
    generator = np.random.default_rng(0)
    prompts = [(*stem, *generator.integers(0, 300, length).tolist()) for length in (7, 40, 1)]
    examples = [
        TokenExample(prompts[place % 3], tuple(generator.integers(0, 300, length).tolist()))
        for place, length in enumerate((5, 1, 12, 30, 2, 1, 8))
    ]
    policy = Policy.load(TINY_QWEN2, activation_checkpointing=activation_checkpointing)
    weights = torch.linspace(-1, 2, sum(len(example.response_ids) for example in examples))
    scores = policy(pack(examples), lambda log_probs, at: weights[at] * log_probs)
    scores.loss.backward()

    model.zero_grad()
    expected = torch.cat([alone(model, example, len(policy.tokenizer)) for example in examples])
    (expected @ weights).backward()
    torch.testing.assert_close(scores.log_probs, expected.detach(), rtol=1e-5, atol=2e-5)
    assert scores.loss.item() == pytest.approx((expected @ weights).item(), rel=1e-5)
    for (name, parameter), (_, other) in zip(policy.model.named_parameters(), model.named_parameters(), strict=True):
        assert (parameter.grad - other.grad).norm() <= 1e-5 * other.grad.norm(), name


token_ids = st.lists(st.integers(0, 22), min_size=1, max_size=6).map(tuple)


@given(st.lists(st.tuples(st.sampled_from([A, B, (7,), (*A, 4), (1, 2, 5)]), token_ids), min_size=1, max_size=6))
def test_packing_changes_nothing_in_float64(pairs):
    """Together in one row, or one by one: 1e-10, gradients included."""
    examples = [TokenExample(*pair) for pair in pairs]
    packed, single = (Policy(FakeLM(), FakeTokenizer()) for _ in range(2))
    scores = packed(pack(examples), lambda log_probs, _: log_probs.exp())
    scores.loss.backward()
    parts = [single(pack([example]), lambda log_probs, _: log_probs.exp()) for example in examples]
    torch.stack([part.loss for part in parts]).sum().backward()
    torch.testing.assert_close(scores.log_probs, torch.cat([part.log_probs for part in parts]), rtol=1e-10, atol=1e-12)
    for parameter, other in zip(packed.parameters(), single.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-10, atol=1e-12)


def test_without_a_layout_rows_are_plainly_causal(model):
    ids = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 0]])
    policy = Policy.load(TINY_QWEN2)
    torch.testing.assert_close(policy.model(ids).logits, model(ids).logits, rtol=1e-4, atol=1e-4)


def test_what_packed_attention_cannot_do_is_an_error():
    query, key = torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 5, 4)
    with pytest.raises(ValueError, match="no sliding window, mask or cache"):
        packed_attention(torch.nn.Identity(), query, key, key, None)
    with pytest.raises(ValueError, match="no sliding window, mask or cache"):
        packed_attention(torch.nn.Identity(), query, query, query, None, sliding_window=2)


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ({"softcap": 50.0}, "softcap"),
        ({"s_aux": torch.zeros(2)}, "s_aux"),
        ({"dropout": 0.1}, "dropout"),
        ({"is_causal": False}, "is_causal"),
        ({"position_bias": torch.zeros(1), "dropout": 0.1}, "dropout, position_bias"),
    ],
)
def test_what_would_change_the_scores_is_an_error(asked, named):
    query = torch.zeros(1, 2, 3, 4)
    with pytest.raises(ValueError, match=rf"Identity asks for {named}, which packed attention does not compute"):
        packed_attention(torch.nn.Identity(), query, query, query, None, **asked)


class Encoder(torch.nn.Module):
    is_causal = False


def test_a_module_that_looks_ahead_is_an_error():
    query = torch.zeros(1, 2, 3, 4)
    with pytest.raises(ValueError, match="Encoder asks for is_causal"):
        packed_attention(Encoder(), query, query, query, None)


SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["qwen2", "llama", "olmo2", "qwen3"])
def test_families_pass_nothing_that_is_refused_and_train_in_bfloat16_too(family, dtype):
    """A packed row against each of its sequences alone, with weights of the dtype and without autocast."""
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(family, **SMALL), attn_implementation=PACKED_ATTENTION, dtype=dtype
    )
    model.train()
    batch = pack(STEMMED)
    packed = model.base_model(
        batch.input_ids, position_ids=batch.position_ids, use_cache=False, layout=batch.layout
    ).last_hidden_state[0, batch.predictors]
    alone = [
        model.base_model(torch.tensor([[*example.prompt_ids, *example.response_ids[:-1]]])).last_hidden_state[0]
        for example in STEMMED
    ]
    expected = torch.cat([hidden[-len(example.response_ids) :] for hidden, example in zip(alone, STEMMED, strict=True)])
    assert packed.dtype == dtype
    # Hidden states behind the last norm are about 1; bfloat16 has 8 bits.
    torch.testing.assert_close(packed, expected, rtol=0, atol=1e-5 if dtype == torch.float32 else 0.1)
    packed.sum().backward()
    assert all(torch.isfinite(grad_of(weight)).all() for weight in model.base_model.parameters())


@pytest.mark.parametrize(("family", "asked"), [("gemma2", "softcap"), ("gpt_oss", "s_aux"), ("gpt2", "dropout")])
def test_families_that_attend_otherwise_are_refused(family, asked):
    config = AutoConfig.for_model(family, **{**SMALL, "head_dim": 8, "num_local_experts": 2, "num_experts_per_tok": 1})
    config.layer_types = ["full_attention"] * 2
    model: Any = AutoModelForCausalLM.from_config(config, attn_implementation=PACKED_ATTENTION)
    model.train()
    with pytest.raises(ValueError, match=f"Attention asks for {asked}, which packed attention does not compute"):
        model.base_model(torch.tensor([[1, 2, 3]]), use_cache=False)


@pytest.mark.parametrize("examples", [[], [TokenExample((1,), ())], [TokenExample((), (1,))]])
def test_nothing_to_pack_is_an_error(examples):
    with pytest.raises(ValueError, match="packing needs examples"):
        pack(examples)


def test_layouts_are_values():
    assert Layout((Segment(1), Segment(2, (0,)))) == Layout((Segment(1), Segment(2, (0,))))
