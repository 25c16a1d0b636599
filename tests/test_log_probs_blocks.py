"""The chunked path in chunks of several blocks, against the plain arithmetic under autograd, in float64."""

import pytest
import torch

from cs336_alignment.numerics import log_probs as module
from cs336_alignment.numerics.log_probs import chunked_log_probs, chunked_token_loss, sampling_logits
from tests.common import grad_of

TOKENS, WIDTH, VOCAB = 11, 5, 13


@pytest.fixture(params=[(11, 11), (11, 3), (4, 3), (4, 1), (3, 2)], ids=lambda rows: f"{rows[0]} rows in {rows[1]}s")
def rows_a_chunk_and_a_block(request, monkeypatch):
    chunk, block = (8 * VOCAB * rows for rows in request.param)
    monkeypatch.setitem(module.LOGITS_CHUNK_BYTES, "cpu", chunk)
    monkeypatch.setitem(module.BLOCK_BYTES, "cpu", block)


def leaves():
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(TOKENS, WIDTH, dtype=torch.float64, generator=generator).requires_grad_()
    weight = (2 * torch.randn(VOCAB, WIDTH, dtype=torch.float64, generator=generator)).requires_grad_()
    return hidden, weight, torch.randint(12, (TOKENS,), generator=generator)


def plain(hidden, weight, labels):
    log_p = sampling_logits(hidden @ weight.T, 1.3, 12)[:, :12].log_softmax(dim=1)
    return log_p.gather(1, labels.unsqueeze(1)).squeeze(1), -(log_p.exp() * log_p).sum(dim=1)


def chunked(hidden, weight, labels):
    return chunked_log_probs(hidden, weight, labels, 1.3, 12)


def check(found, expected):
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


# A term that is left out of the loss sends no gradient at all, rather than zeros.
@pytest.mark.parametrize(("of_log_probs", "of_entropy"), [(0.7, None), (None, 0.4), (0.7, 0.4)])
@pytest.mark.usefixtures("rows_a_chunk_and_a_block")
def test_chunked_log_probs_by_blocks(of_log_probs, of_entropy):
    results = []
    for scores_of in (chunked, plain):
        hidden, weight, labels = leaves()
        log_probs, entropy = scores_of(hidden, weight, labels)
        pairs = ((of_log_probs, log_probs), (of_entropy, entropy))
        torch.stack([factor * (scores**2).sum() for factor, scores in pairs if factor]).sum().backward()
        results.append([log_probs.detach(), entropy.detach(), grad_of(hidden), grad_of(weight)])
    check(*results)


@pytest.mark.usefixtures("rows_a_chunk_and_a_block")
def test_chunked_token_loss_by_blocks():
    factors = torch.linspace(-1, 2, TOKENS, dtype=torch.float64)
    hidden, weight, labels = leaves()
    loss, log_probs, entropy = chunked_token_loss(
        hidden, weight, labels, lambda scores, at: factors[at] * scores.exp(), 1.3, 12
    )
    loss.backward()
    found = [loss.detach(), log_probs, entropy, grad_of(hidden), grad_of(weight)]
    hidden, weight, labels = leaves()
    log_probs, entropy = plain(hidden, weight, labels)
    loss = (factors * log_probs.exp()).sum()
    loss.backward()
    check(found, [loss.detach(), log_probs.detach(), entropy.detach(), grad_of(hidden), grad_of(weight)])
