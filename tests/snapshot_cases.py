"""The inputs of the snapshot tests, shared with `make_snapshots.py`, which computes what is expected of them.

Inputs are drawn in float32, so that the float64 references see exactly what the library sees.
"""

import hashlib
from typing import Any

import numpy as np

BATCH, SEQ, VOCAB, GROUP_SIZE = 8, 10, 50, 4
GRADIENT_ACCUMULATION_STEPS = 2
PROMPTS = ["Hello, world!", "This is a test.", "This is another test."]
OUTPUTS = ["Hello, world!", "This is a test.", "This is another test of a longer answer."]
DPO_PROMPT, DPO_CHOSEN, DPO_REJECTED = "The quick brown fox jumps over", "the lazy dog.", "their crazy frog."
DPO_BETA = 0.5
RESPONSES = [f"response number {i}" for i in range(BATCH)]
GROUND_TRUTHS = ["42"] * BATCH


def reward_fn(response: str, ground_truth: str) -> dict[str, float]:
    """A reward in steps of a tenth that looks random and is the same everywhere."""
    digest = hashlib.sha256(f"{response} {ground_truth}".encode()).digest()
    reward = digest[0] % 10 / 10
    return {"reward": reward, "format_reward": reward, "answer_reward": reward}


def tensors() -> dict[str, Any]:
    """The numeric inputs: float32 and bool arrays, seed 42."""
    rng = np.random.default_rng(42)
    log_probs = rng.standard_normal((BATCH, SEQ)).astype(np.float32)
    return {
        "logits": rng.standard_normal((BATCH, SEQ, VOCAB)).astype(np.float32) * 3,
        "tensor": rng.standard_normal((BATCH, SEQ)).astype(np.float32),
        "mask": rng.random((BATCH, SEQ)) < 0.6,
        "policy_log_probs": log_probs,
        "old_log_probs": log_probs + 0.3 * rng.standard_normal((BATCH, SEQ)).astype(np.float32),
        "raw_rewards": rng.random((BATCH, 1)).astype(np.float32),
        "advantages": rng.standard_normal((BATCH, 1)).astype(np.float32),
    }
