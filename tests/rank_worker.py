"""One rank of a test: trains a fake model on a fixed batch, and writes down what came out.

torchrun --nproc_per_node 2 -m tests.rank_worker OUTPUT [replicas | fsdp2]
"""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from cs336_alignment.numerics.aggregation import sequence_mean_weights
from cs336_alignment.ranks import Ranks, leave_peers
from cs336_alignment.rollout.transformers_engine import Dtype
from cs336_alignment.tasks.problem import Problem
from cs336_alignment.training.checkpoint import Checkpoints, Progress
from cs336_alignment.training.distributed import Sharding
from cs336_alignment.training.learner import Learner, OptimizerConfig, StepResult
from cs336_alignment.training.packing import TokenExample
from cs336_alignment.training.policy import Policy
from cs336_alignment.training.rollouts import sample_rollouts
from tests.common import TINY_QWEN2
from tests.fakes import FakeLM, FakeTokenizer, TalkingEngine

LENGTHS = (4, 1, 2, 6, 3, 5, 7)
EXAMPLES = [
    TokenExample((1, 2, 3) if row % 2 else (4, 5), tuple((7 * row + 3 * place) % 20 for place in range(length)))
    for row, length in enumerate(LENGTHS)
]
ADVANTAGES = torch.tensor([1.0, -0.5, 0.0, 2.0, 0.0, -1.5, 0.7], dtype=torch.float64)
BUDGETS = (None, 6)
"""One example a microbatch, five microbatches; and longer rows. Either way some rank has an empty one."""
PROBLEMS = [Problem(f"what is {number}", str(number)) for number in range(5)]


def train(ranks: Ranks, sharding: Sharding, folder: Path, token_budget: int | None) -> dict[str, Any]:
    """Three optimiser steps, and the third once more from a checkpoint; every figure that a rank could get wrong."""
    accumulation = 7 if token_budget is None else None
    config = OptimizerConfig(
        learning_rate=0.1, max_grad_norm=0.3, gradient_accumulation_steps=accumulation, token_budget=token_budget
    )
    checkpoints = Checkpoints(folder / f"run_of_{ranks.count}_{sharding}_{token_budget}")
    learner, resumed = (Learner(Policy(FakeLM(), FakeTokenizer()), config, ranks, folder, sharding) for _ in range(2))
    lengths = torch.tensor(LENGTHS)
    weights = sequence_mean_weights(lengths).where(ADVANTAGES != 0, 0.0)

    def token_loss_of(rows: list[int]):
        spread = (weights * ADVANTAGES)[rows].repeat_interleave(lengths[rows])
        return lambda log_probs, at: -spread[at] * log_probs

    results = [learner.step(EXAMPLES, weights, token_loss_of) for _ in range(2)]
    torch.manual_seed(ranks.index)
    saved = checkpoints.save(learner, Progress(step=2, optimizer_steps=2))
    drawn = torch.rand(1).item()
    results.append(learner.step(EXAMPLES, weights, token_loss_of))
    torch.manual_seed(9)
    checkpoints.load(saved, resumed)
    drawn_again = torch.rand(1).item()
    resumed.step(EXAMPLES, weights, token_loss_of)
    rollouts = sample_rollouts(
        TalkingEngine(), FakeTokenizer(), PROBLEMS, "{question}", grade, TalkingEngine.sampling, ranks
    )
    return {
        "weights": dict(learner.policy.weights()),
        "resumed_weights": dict(resumed.policy.weights()),
        "drawn": (drawn, drawn_again),
        "loss": [result.loss for result in results],
        "grad_norm": [result.grad_norm for result in results],
        "log_probs": [scores for result in results for scores in result.log_probs if scores is not None],
        "tokens_run": [result.tokens_run for result in results],
        "scores": learner.score(EXAMPLES),
        "rollouts": [(rollout.question, rollout.response, rollout.reward) for rollout in rollouts],
    }


def real_gradient(ranks: Ranks, dtype: Dtype, activation_checkpointing: bool = False) -> dict[str, Any]:
    """The gradient of a real tiny Qwen2. In bfloat16 on several ranks it is as the default is on GPUs: weights are put
    together in bfloat16, gradients added in float32."""
    policy = Policy.load(TINY_QWEN2, dtype=dtype, activation_checkpointing=activation_checkpointing)
    learner = Learner(policy, OptimizerConfig(token_budget=12), ranks, Path())
    gradients: dict[str, Tensor] = {}

    def keep(_: StepResult) -> None:
        for name, parameter in policy.named_parameters():
            assert parameter.grad is not None
            gradient = parameter.grad
            gradients[name] = gradient.full_tensor() if isinstance(gradient, DTensor) else gradient.clone()

    weights = torch.linspace(-1, 1, len(EXAMPLES))
    lengths = torch.tensor(LENGTHS)

    def token_loss_of(rows: list[int]):
        spread = weights[rows].repeat_interleave(lengths[rows])
        return lambda log_probs, at: -spread[at] * log_probs

    layouts = []
    for layer in policy.model.base_model.layers:
        layer.self_attn.register_forward_pre_hook(
            lambda _, __, given: layouts.append(given["layout"]), with_kwargs=True
        )
    learner.config = replace(learner.config, max_grad_norm=1e9)
    result = learner.step(EXAMPLES, weights, token_loss_of, inspect=keep)
    return {
        "gradients": gradients,
        "log_probs": torch.cat([scores for scores in result.log_probs if scores is not None]),
        "layouts": len({id(layout) for layout in layouts}),
        "dtypes": {str(parameter.dtype) for parameter in policy.parameters()},
    }


def grade(response: str, gold: str, fast: bool):
    from cs336_alignment.grading import Grade, Verdict

    return Grade(True, response, Verdict(response.startswith(gold), "same text"))


def main() -> None:
    output = Path(sys.argv[1])
    ranks = Ranks()
    sharding = "fsdp2" if "fsdp2" in sys.argv else "replicas"
    results = [train(ranks, sharding, output.parent, token_budget) for token_budget in BUDGETS]
    if sharding == "fsdp2":
        gradients = [
            real_gradient(ranks, "bfloat16"),
            real_gradient(ranks, "bfloat16", activation_checkpointing=True),
            real_gradient(ranks, "float32"),
        ]
        torch.save(gradients, output.with_suffix(f".half.{ranks.index}.pt"))
    # Every rank must know the same; they are compared by the test.
    torch.save(results, output.with_suffix(f".{ranks.index}.pt"))
    leave_peers()


if __name__ == "__main__":
    main()
