"""The chunked path against float64 numpy, written from the equations: values and gradients."""

import numpy as np
import pytest
import torch

from cs336_alignment.numerics import log_probs as module
from cs336_alignment.numerics.log_probs import chunked_log_probs, chunked_token_loss
from tests import references
from tests.common import grad_of

TOKENS, WIDTH, VOCAB = 11, 5, 13


@pytest.fixture(params=[1, 3, 4, 11, 100], ids=lambda rows: f"{rows} rows")
def rows_a_chunk(request, monkeypatch):
    """Chunks of a single row, of a divisor of the tokens and not, of all of them, of more."""
    monkeypatch.setitem(module.LOGITS_CHUNK_BYTES, "cpu", 8 * VOCAB * request.param)


def problem(seed=0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    hidden, weight = normal(TOKENS, WIDTH).requires_grad_(), (2 * normal(VOCAB, WIDTH)).requires_grad_()
    labels = torch.randint(0, 10, (TOKENS,), generator=generator)
    return hidden, weight, labels, normal(TOKENS), normal(TOKENS)


def reference(hidden, weight, labels, temperature, vocab_size, by_log_prob, by_entropy):
    """Log-probs, entropy, and the gradient of sum_t g_t log p_t + h_t H_t in the hidden states and the head.

    dlog p_y / dz = (onehot(y) - p) / T, dH / dz = -p (log p + H) / T, z = W h, over the first vocab_size rows of W.
    """
    h, w, y = hidden.detach().numpy(), weight.detach().numpy()[:vocab_size], labels.numpy()
    logits = h @ w.T / temperature
    log_p = references.log_softmax(logits)
    by_logits = by_log_prob.numpy()[:, None] * (np.eye(len(w))[y] - np.exp(log_p))
    by_logits += by_entropy.numpy()[:, None] * references.entropy_gradient(logits)
    by_logits /= temperature
    by_weight = np.zeros(weight.shape)
    by_weight[:vocab_size] = by_logits.T @ h
    return log_p[np.arange(len(y)), y], references.entropy(logits), by_logits @ w, by_weight


@pytest.mark.parametrize(("temperature", "vocab_size"), [(1.0, VOCAB), (0.7, 10), (1.6, 12)])
def test_chunked_log_probs_against_reference(rows_a_chunk, temperature, vocab_size):
    hidden, weight, labels, by_log_prob, by_entropy = problem()
    log_probs, entropy = chunked_log_probs(hidden, weight, labels, temperature, vocab_size)
    (log_probs @ by_log_prob + entropy @ by_entropy).backward()
    expected = reference(hidden, weight, labels, temperature, vocab_size, by_log_prob, by_entropy)
    for actual, value in zip((log_probs, entropy, hidden.grad, weight.grad), expected, strict=True):
        assert actual is not None
        np.testing.assert_allclose(actual.detach().numpy(), value, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("frozen", [0, 1], ids=["hidden states frozen", "head frozen"])
def test_a_frozen_side_leaves_the_others_gradient(rows_a_chunk, frozen):
    hidden, weight, labels, by_log_prob, by_entropy = problem()
    expected = reference(hidden, weight, labels, 1.0, VOCAB, by_log_prob, 0 * by_entropy)[3 - frozen]
    for chunked in (
        lambda h, w: chunked_log_probs(h, w, labels)[0] @ by_log_prob,
        lambda h, w: chunked_token_loss(h, w, labels, lambda chunk, at: by_log_prob[at] * chunk)[0],
    ):
        inputs = [hidden.detach().requires_grad_(frozen == 1), weight.detach().requires_grad_(frozen == 0)]
        chunked(*inputs).backward()
        assert inputs[frozen].grad is None
        np.testing.assert_allclose(grad_of(inputs[1 - frozen]), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("temperature", "vocab_size"), [(1.0, VOCAB), (0.7, 10)])
def test_chunked_token_loss_against_reference(rows_a_chunk, temperature, vocab_size):
    # f_t(l) = w_t e^l, so f_t'(l) = w_t e^l: by_log_prob of the reference.
    hidden, weight, labels, weights, _ = problem()
    loss, log_probs, entropy = chunked_token_loss(
        hidden, weight, labels, lambda chunk, at: weights[at] * chunk.exp(), temperature, vocab_size
    )
    (3 * loss).backward()
    slope = (
        3
        * weights
        * torch.from_numpy(np.exp(reference(hidden, weight, labels, temperature, vocab_size, weights, 0 * weights)[0]))
    )
    expected = reference(hidden, weight, labels, temperature, vocab_size, slope, 0 * weights)
    for actual, value in zip((log_probs, entropy, hidden.grad, weight.grad), expected, strict=True):
        assert actual is not None
        np.testing.assert_allclose(actual.detach().numpy(), value, rtol=1e-10, atol=1e-12)
    assert 3 * loss.item() == pytest.approx(slope.sum().item(), rel=1e-12)
    assert not log_probs.requires_grad
    assert not entropy.requires_grad


def test_chunked_log_probs_gradcheck(rows_a_chunk):
    hidden, weight, labels, *_ = problem(1)
    torch.autograd.gradcheck(lambda h, w: chunked_log_probs(h, w, labels, 1.3, 12), (hidden, weight))


def test_a_constant_loss_has_no_gradient():
    hidden, weight, labels, *_ = problem()
    chunked_token_loss(hidden, weight, labels, lambda chunk, _: 0 * chunk + 1)[0].backward()
    assert not grad_of(hidden).any()
    assert not grad_of(weight).any()


def test_without_gradient_none_is_formed():
    hidden, weight, labels, weights, _ = problem()
    loss, log_probs, _ = chunked_token_loss(
        hidden.detach(), weight.detach(), labels, lambda chunk, at: weights[at] * chunk
    )
    assert loss.item() == pytest.approx((weights * log_probs).sum().item())
    assert not loss.requires_grad


def test_certain_and_impossible_tokens():
    # Logits 0 and -2000 and one row of padding: log p = 0 and -2000, entropy 0; neither is NaN, gradients are finite.
    hidden = torch.tensor([[1.0], [1.0]], requires_grad=True)
    weight = torch.tensor([[0.0], [-2000.0], [5000.0]], requires_grad=True)
    log_probs, entropy = chunked_log_probs(hidden, weight, torch.tensor([0, 1]), vocab_size=2)
    assert log_probs.tolist() == [0.0, -2000.0]
    assert entropy.tolist() == [0.0, 0.0]
    (log_probs.sum() + entropy.sum()).backward()
    # dlog p_1 / dz = (1, -1) reversed for the second row, whose label is the impossible token: (-1, 1).
    assert grad_of(weight).tolist() == [[-1.0], [1.0], [0.0]]
    assert grad_of(hidden).tolist() == [[0.0], [-2000.0]]


def test_under_autocast_products_run_in_bfloat16_and_the_rest_in_float32():
    hidden, weight, labels, weights, _ = problem()
    exact = chunked_log_probs(hidden, weight, labels)[0]
    hidden32, weight32 = (tensor.detach().float().requires_grad_() for tensor in (hidden, weight))
    with torch.autocast("cpu", torch.bfloat16):
        loss, log_probs, _ = chunked_token_loss(
            hidden32, weight32, labels, lambda chunk, at: weights[at].float() * chunk
        )
    loss.backward()
    assert log_probs.dtype == grad_of(hidden32).dtype == grad_of(weight32).dtype == torch.float32
    difference = (log_probs - exact).abs().max().item()
    assert 1e-5 < difference < 0.2
    (exact @ weights).backward()
    torch.testing.assert_close(grad_of(weight32).double(), grad_of(weight), rtol=0.05, atol=0.1)


def test_a_device_has_its_own_chunks(monkeypatch):
    monkeypatch.setattr(module, "LOGITS_CHUNK_BYTES", {"cpu": 8 * VOCAB * 4, "cuda": 8 * VOCAB * 100})
    hidden, weight, labels, *_ = problem()
    chunks = []
    chunked_token_loss(hidden, weight, labels, lambda chunk, at: chunks.append(at) or chunk)
    assert chunks == [slice(0, 4), slice(4, 8), slice(8, 11)]
