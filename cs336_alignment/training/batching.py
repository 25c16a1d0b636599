"""Which sequences run together, and on which rank.

A plan covers the whole train batch, all ranks at once, and every rank makes the same one. Each rank gets as many
microbatches as any other, for their gradients meet in collective operations; one may be empty.
"""

from collections.abc import Sequence
from itertools import pairwise

from cs336_alignment.training.packing import TokenExample, packed_tokens, stem_length

Microbatch = list[int]
"""Positions of examples in the train batch."""


def split_by_size(rows: Sequence[int], size: int, n_ranks: int) -> list[list[Microbatch]]:
    """The handout's gradient accumulation: microbatches of equal size, taken in order, dealt out to the ranks.

    Args:
        rows: the examples to run.
        size: most examples in a microbatch; as few microbatches as it allows, whose sizes differ by one at most.
        n_ranks: the ranks; a multiple of `n_ranks` microbatches is made, the last of them empty.

    Returns:
        For each rank its microbatches.
    """
    microbatches = max(1, -(-len(rows) // size))
    bounds = [len(rows) * part // microbatches for part in range(microbatches + 1)]
    parts = [list(rows[start:end]) for start, end in pairwise(bounds)]
    parts += [[] for _ in range(-len(parts) % n_ranks)]
    return [parts[rank::n_ranks] for rank in range(n_ranks)]


def split_by_tokens(
    examples: Sequence[TokenExample], rows: Sequence[int], token_budget: int, n_ranks: int
) -> list[list[Microbatch]]:
    """As few microbatches as the budget allows, of nearly equal cost, responses to one prompt together.

    The cost of a microbatch is the length of its packed row: the stem of all prompts, and what each group adds to it.
    A group over the budget runs alone. Each other goes, largest first, to the microbatch that is shortest so far; where
    one comes out over the budget, all is done again with one more on every rank.

    Args:
        examples: the train batch.
        rows: the examples to run.
        token_budget: longest packed row. An example that is longer by itself runs alone.
        n_ranks: the ranks.

    Returns:
        For each rank its microbatches.
    """
    groups = _groups_within(examples, rows, token_budget)
    stem = stem_length(examples[row].prompt_ids for row in rows)
    costs = [packed_tokens([examples[row] for row in group]) - stem for group in groups]
    largest_first = sorted(range(len(groups)), key=lambda group: -costs[group])
    limit = max(1, token_budget - stem)
    alone = [groups[group] for group in largest_first if costs[group] > limit]
    together = largest_first[len(alone) :]
    least = len(alone) + -(-sum(costs[group] for group in together) // limit)
    count = n_ranks * max(1, -(-least // n_ranks)) - len(alone)
    while True:
        parts: list[Microbatch] = [[] for _ in range(count)]
        filled = [0] * count
        for group in together:
            shortest = filled.index(min(filled))
            parts[shortest] += groups[group]
            filled[shortest] += costs[group]
        if max(filled, default=0) <= limit:
            return [[*alone, *parts][rank::n_ranks] for rank in range(n_ranks)]
        count += n_ranks


def _groups_within(examples: Sequence[TokenExample], rows: Sequence[int], token_budget: int) -> list[Microbatch]:
    """Rows by prompt; a group over the budget is cut into pieces that each repeat the prompt."""
    groups: dict[tuple[int, ...], list[Microbatch]] = {}
    for row in rows:
        pieces = groups.setdefault(examples[row].prompt_ids, [[]])
        if pieces[-1] and packed_tokens([examples[other] for other in [*pieces[-1], row]]) > token_budget:
            pieces.append([])
        pieces[-1].append(row)
    return [piece for pieces in groups.values() for piece in pieces]
