"""The chunked path with hidden states and a head in bfloat16, as bfloat16 parameters bring them: what stays precise."""

import numpy as np
import pytest
import torch

from cs336_alignment.numerics import log_probs as module
from cs336_alignment.numerics.log_probs import chunked_log_probs, chunked_token_loss
from tests import references
from tests.common import grad_of

TOKENS, WIDTH, VOCAB = 768, 6, 8


@pytest.fixture(params=[1, 64, TOKENS], ids=lambda rows: f"{rows} rows", autouse=True)
def rows_a_chunk(request, monkeypatch):
    monkeypatch.setitem(module.LOGITS_CHUNK_BYTES, "cpu", 4 * VOCAB * request.param)


def loss_by_log_probs(hidden, weight, labels):
    log_probs, entropy = chunked_log_probs(hidden, weight, labels)
    return log_probs.sum(), log_probs, entropy


def loss_by_tokens(hidden, weight, labels):
    return chunked_token_loss(hidden, weight, labels, lambda log_probs, _: log_probs)


DOORS = pytest.mark.parametrize("door", [loss_by_log_probs, loss_by_tokens])


@DOORS
def test_the_heads_gradient_by_hand(door):
    """Weights of 0: p = 1/8 everywhere, so each of 768 tokens adds 7/8 to the row of its label and takes 1/8 from the
    others; float32 holds every partial sum. Summed in bfloat16, 256 + 7/8 is 256 again."""
    hidden = torch.ones(TOKENS, WIDTH, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.zeros(VOCAB, WIDTH, dtype=torch.bfloat16, requires_grad=True)
    door(hidden, weight, torch.full((TOKENS,), 5))[0].backward()
    expected = torch.full((VOCAB, WIDTH), -96.0)
    expected[5] = 672
    assert grad_of(weight).dtype == grad_of(hidden).dtype == torch.bfloat16
    assert grad_of(weight).tolist() == expected.tolist()


@DOORS
def test_half_precision_against_a_reference_in_float64(door):
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (
        (mean + 0.5 * torch.randn(rows, WIDTH, generator=generator)).bfloat16().requires_grad_()
        for mean, rows in ((1, TOKENS), (0, VOCAB))
    )
    labels = torch.randint(3, (TOKENS,), generator=generator)
    loss, log_probs, entropy = door(hidden, weight, labels)
    assert loss.dtype == log_probs.dtype == entropy.dtype == torch.float32
    (2 * loss).backward()

    h, w = (tensor.detach().double().numpy() for tensor in (hidden, weight))
    log_p = references.log_softmax(h @ w.T)
    by_logits = 2 * (np.eye(VOCAB)[labels.numpy()] - np.exp(log_p))
    # Logits of about 2 in bfloat16, 8 bits, are known to 2^-8; what follows is float32, and does not round that far.
    np.testing.assert_allclose(log_probs.detach(), log_p[np.arange(TOKENS), labels], rtol=0, atol=2**-6)
    np.testing.assert_allclose(entropy.detach(), references.entropy(h @ w.T), rtol=0, atol=2**-6)
    assert len(log_probs.detach().bfloat16().float().unique()) < len(log_probs.detach().unique())
    # The roundings of single tokens' products average out; that of the sum is left.
    by_weight = torch.from_numpy(by_logits.T @ h)
    error = (grad_of(weight).double() - by_weight).norm() / by_weight.norm()
    one_rounding = (by_weight.bfloat16().double() - by_weight).norm() / by_weight.norm()
    assert error <= 1.1 * one_rounding
    np.testing.assert_allclose(grad_of(hidden).double(), by_logits @ w, rtol=0, atol=2**-5)
