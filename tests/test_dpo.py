"""The per-instance DPO loss (supplementary handout)."""

import copy
import math

import numpy as np
import pytest
import torch

from cs336_alignment.numerics.preference import dpo_loss
from tests import references, snapshot_cases
from tests.adapters import run_compute_per_instance_dpo_loss
from tests.common import grad_of


@pytest.fixture
def policy(model):
    """The reference model, moved a little."""
    policy = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(42)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return policy


def response_log_prob(model, tokenizer, response):
    """log p(response, EOS | Alpaca prompt), ids put together by hand, probabilities in float64."""
    prompt = (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request."
        f"\n\n### Instruction:\n{snapshot_cases.DPO_PROMPT}\n\n### Response:\n"
    )
    prompt_ids = tokenizer(prompt)["input_ids"]
    ids = [*prompt_ids, *tokenizer(response)["input_ids"], tokenizer.eos_token_id]
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0, :-1].double().numpy()
    mask = np.arange(1, len(ids)) >= len(prompt_ids)
    return references.sequence_log_prob(logits, np.array(ids[1:]), mask)


def loss(policy, reference, tokenizer, beta=snapshot_cases.DPO_BETA):
    return run_compute_per_instance_dpo_loss(
        lm=policy,
        lm_ref=reference,
        tokenizer=tokenizer,
        beta=beta,
        prompt=snapshot_cases.DPO_PROMPT,
        response_chosen=snapshot_cases.DPO_CHOSEN,
        response_rejected=snapshot_cases.DPO_REJECTED,
    )


def test_per_instance_dpo_loss(policy, model, tokenizer):
    responses = (snapshot_cases.DPO_CHOSEN, snapshot_cases.DPO_REJECTED)
    log_probs = [response_log_prob(lm, tokenizer, response) for lm in (policy, model) for response in responses]
    expected = references.dpo(*log_probs, beta=snapshot_cases.DPO_BETA)
    assert abs(expected - math.log(2)) > 0.01  # the two models do differ
    assert loss(policy, model, tokenizer).item() == pytest.approx(expected, rel=1e-5)


def test_per_instance_dpo_loss_of_equal_models_is_log_2(model, tokenizer):
    assert loss(model, model, tokenizer).item() == pytest.approx(math.log(2), rel=1e-6)


def test_per_instance_dpo_loss_has_gradient_into_the_policy_alone(policy, model, tokenizer):
    reference = copy.deepcopy(model)
    loss(policy, reference, tokenizer).backward()
    assert any(grad_of(parameter).abs().sum() > 0 for parameter in policy.parameters())
    assert all(parameter.grad is None for parameter in reference.parameters())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a second device")
def test_per_instance_dpo_loss_of_models_on_two_devices(policy, model, tokenizer):
    expected = loss(policy, model, tokenizer).item()
    found = loss(copy.deepcopy(policy).cuda(), model, tokenizer)
    assert found.device.type == "cuda"
    assert found.item() == pytest.approx(expected, rel=1e-4)


def test_dpo_loss_by_hand():
    # The policy gained 1 nat on the chosen response and lost 2 on the rejected one: d = 3, beta 0.5.
    # loss = log(1 + exp(-1.5)), d loss / d chosen = -beta * sigmoid(-1.5)
    chosen = torch.tensor([-4.0], dtype=torch.float64, requires_grad=True)
    rejected, reference_chosen, reference_rejected = torch.tensor([[-7.0], [-5.0], [-5.0]], dtype=torch.float64)
    result = dpo_loss(chosen, rejected, reference_chosen, reference_rejected, beta=0.5)
    result.sum().backward()
    assert result.item() == pytest.approx(math.log1p(math.exp(-1.5)), rel=1e-12)
    assert grad_of(chosen).item() == pytest.approx(-0.5 / (1 + math.exp(1.5)), rel=1e-12)


def test_dpo_loss_gradcheck():
    arguments = [torch.randn(3, dtype=torch.float64, requires_grad=True) for _ in range(4)]
    assert torch.autograd.gradcheck(lambda *values: dpo_loss(*values, beta=0.3), arguments)
