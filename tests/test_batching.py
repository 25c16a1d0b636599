"""Plans of microbatches: every row once, as many for each rank, within the budget, groups together."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cs336_alignment.numerics.aggregation import constant_weights, sequence_mean_weights, token_mean_weights
from cs336_alignment.training.batching import split_by_size, split_by_tokens
from cs336_alignment.training.packing import TokenExample, packed_tokens


def example(prompt: int, length: int, stem: int = 0) -> TokenExample:
    """A prompt of ten tokens that its number tells apart, behind a stem that all share."""
    return TokenExample((*range(stem), *(100 + prompt,) * 10), (0,) * length)


lengths = st.lists(st.tuples(st.integers(0, 4), st.integers(1, 60)), max_size=40)


@given(lengths, st.integers(1, 200), st.integers(1, 4), st.integers(0, 30))
def test_a_token_budget_is_kept_and_nothing_is_lost(pairs, budget, n_ranks, stem):
    examples = [example(*pair, stem=stem) for pair in pairs]
    plan = split_by_tokens(examples, range(len(examples)), budget, n_ranks)
    assert len(plan) == n_ranks
    assert len({len(microbatches) for microbatches in plan}) == 1
    microbatches = [microbatch for rank in plan for microbatch in rank]
    assert sorted(row for microbatch in microbatches for row in microbatch) == list(range(len(examples)))
    for microbatch in microbatches:
        assert len(microbatch) <= 1 or packed_tokens([examples[row] for row in microbatch]) <= budget


@given(st.lists(st.integers(1, 60), max_size=40), st.integers(1, 50), st.integers(1, 4))
def test_equal_sizes_keep_the_order(rows, size, n_ranks):
    plan = split_by_size(rows, size, n_ranks)
    assert len({len(parts) for parts in plan}) == 1
    in_turn = [plan[place % n_ranks][place // n_ranks] for place in range(n_ranks * len(plan[0]))]
    assert [row for part in in_turn for row in part] == rows
    sizes = [len(part) for part in in_turn if part]
    assert not sizes or (max(sizes) - min(sizes) <= 1 and max(sizes) <= size)
    assert len(sizes) == math.ceil(len(rows) / size)


def test_the_handouts_accumulation():
    # 256 rollouts in 128 steps: two a microbatch, on two ranks 64 microbatches each.
    plan = split_by_size(range(256), 2, 2)
    assert [len(parts) for parts in plan] == [64, 64]
    assert plan[0][:2] == [[0, 1], [4, 5]]


def test_a_group_shares_its_prompt_where_it_fits():
    # Two groups of 10 + 3 * 9 = 37 tokens each: within 37 one microbatch a group, within 74 both in one.
    examples = [example(prompt, 10) for prompt in (0, 1, 0, 1, 0, 1)]
    assert split_by_tokens(examples, range(6), 37, 1) == [[[0, 2, 4], [1, 3, 5]]]
    assert split_by_tokens(examples, range(6), 74, 1) == [[[0, 2, 4, 1, 3, 5]]]
    # Within 30, pieces of 10 + 2 * 9 = 28 and 10 + 9 = 19: the prompt is computed twice.
    assert split_by_tokens(examples, range(6), 30, 1) == [[[0, 2], [1, 3], [4], [5]]]


def test_a_stem_counts_once_a_microbatch():
    # Behind 20 shared tokens four prompts of 10 with 6 - 1 more each: 20 + 4 * 15 in one row, 20 + 2 * 15 in two.
    examples = [example(prompt, 6, stem=20) for prompt in range(4)]
    assert split_by_tokens(examples, range(4), 80, 1) == [[[0, 1, 2, 3]]]
    assert split_by_tokens(examples, range(4), 79, 1) == [[[0, 2], [1, 3]]]
    assert split_by_tokens(examples, range(4), 49, 1) == [[[0], [1], [2], [3]]]


def test_costs_are_balanced_over_ranks():
    # One group of 10 + 99 = 109 tokens against five of 10 + 19 = 29 = 145 together.
    examples = [example(0, 100), *(example(number, 20) for number in range(1, 6))]
    plan = split_by_tokens(examples, range(6), 1000, 2)
    assert sorted(packed_tokens([examples[row] for row in rank[0]]) for rank in plan) == [116, 138]


def test_weights_by_hand():
    lengths = torch.tensor([2, 0, 4])
    assert sequence_mean_weights(lengths).tolist() == pytest.approx([1 / 6, 0, 1 / 12])
    assert constant_weights(lengths, 10.0).tolist() == pytest.approx([1 / 30] * 3)
    assert token_mean_weights(lengths).tolist() == pytest.approx([1 / 6] * 3)
    assert token_mean_weights(torch.tensor([0, 0])).tolist() == [1.0, 1.0]
