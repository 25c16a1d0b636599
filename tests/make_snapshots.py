"""Compute the snapshots in `_snapshots/` from the float64 references. The code under test takes no part.

    uv run python -m tests.make_snapshots

The one exception is the model: its logits come from transformers, on the tiny fixture.
"""

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests import references, snapshot_cases
from tests.common import SNAPSHOTS_PATH, TINY_QWEN2


def numeric_snapshots() -> dict[str, dict[str, np.ndarray]]:
    inputs = {
        name: array if array.dtype == bool else array.astype(np.float64)
        for name, array in snapshot_cases.tensors().items()
    }
    tensor, mask, log_probs, old = (inputs[k] for k in ("tensor", "mask", "policy_log_probs", "old_log_probs"))
    rewards, advantages = inputs["raw_rewards"], inputs["advantages"]
    steps = snapshot_cases.GRADIENT_ACCUMULATION_STEPS
    snapshots: dict[str, dict[str, np.ndarray]] = {
        "test_compute_entropy": {"entropy": references.entropy(inputs["logits"])},
        "test_compute_naive_policy_gradient_loss": {"loss": -rewards * log_probs},
    }
    for name, axis in {"dim0": 0, "dim1": 1, "dimlast": -1, "dimNone": None}.items():
        axis = 1 if axis == -1 else axis
        snapshots[f"test_masked_mean_{name}"] = {"mean": references.masked_mean(tensor, mask, axis)}
        snapshots[f"test_masked_normalize_{name}"] = {"sum": references.masked_normalize(tensor, mask, axis, 42.0)}
    for name, constant in {"": 1.0, "_normalize": 100.0, "_10_steps": 1.0}.items():
        loss, gradient = references.sft_step(log_probs, mask, steps, constant)
        repeats = 10 if name == "_10_steps" else 1
        snapshots[f"test_sft_microbatch_train_step{name}"] = {
            "loss": np.array(loss),
            "gradient": repeats * gradient,
        }
    for name, by_std in {"normalize_by_std": True, "no_normalize_by_std": False}.items():
        raw = np.array([snapshot_cases.reward_fn(response, "42")["reward"] for response in snapshot_cases.RESPONSES])
        snapshots[f"test_compute_group_normalized_rewards_{name}"] = {
            "advantages": references.group_normalized(raw, snapshot_cases.GROUP_SIZE, 1e-6, by_std),
            "raw_rewards": raw,
        }
    for name, cliprange in {"large": 10.0, "small": 0.1}.items():
        loss, _ = references.policy_gradient("grpo_clip", log_probs, rewards, advantages, old, cliprange)
        snapshots[f"test_compute_grpo_clip_loss_{name}_cliprange"] = {"loss": loss}
    for loss_type in ("no_baseline", "reinforce_with_baseline", "grpo_clip", "grpo_no_clip"):
        loss, gradient = references.policy_gradient(loss_type, log_probs, rewards, advantages, old, 0.2)
        snapshots[f"test_compute_policy_gradient_loss_{loss_type}"] = {"loss": loss}
        if loss_type == "grpo_clip":
            total, gradient = references.grpo_step(loss, gradient, mask, steps)
            for name, repeats in {"": 1, "_10_steps": 10}.items():
                snapshots[f"test_grpo_microbatch_train_step_grpo_clip{name}"] = {
                    "loss": np.array(total),
                    "gradient": repeats * gradient,
                }
    return snapshots


def model_snapshots() -> dict[str, dict[str, np.ndarray]]:
    tokenizer = AutoTokenizer.from_pretrained(TINY_QWEN2)
    prompts = [tokenizer(text)["input_ids"] for text in snapshot_cases.PROMPTS]
    outputs = [tokenizer(text)["input_ids"] for text in snapshot_cases.OUTPUTS]
    width = max(len(prompt) + len(output) for prompt, output in zip(prompts, outputs, strict=True))
    rows, mask = [], []
    for prompt, output in zip(prompts, outputs, strict=True):
        padding = width - len(prompt) - len(output)
        rows.append(prompt + output + [tokenizer.pad_token_id] * padding)
        mask.append([False] * len(prompt) + [True] * len(output) + [False] * padding)
    ids, response_mask = np.array(rows), np.array(mask)[:, 1:]
    input_ids, labels = ids[:, :-1], ids[:, 1:]
    model = AutoModelForCausalLM.from_pretrained(TINY_QWEN2)
    with torch.no_grad():
        logits = model(torch.tensor(input_ids)).logits.double().numpy()
    log_probs = np.take_along_axis(references.log_softmax(logits), labels[..., None], axis=-1)[..., 0]
    return {
        "test_tokenize_prompt_and_output": {"input_ids": input_ids, "labels": labels, "response_mask": response_mask},
        "test_get_response_log_probs": {"log_probs": log_probs, "token_entropy": references.entropy(logits)},
    }


def main() -> None:
    SNAPSHOTS_PATH.mkdir(exist_ok=True)
    for name, arrays in (numeric_snapshots() | model_snapshots()).items():
        np.savez(SNAPSHOTS_PATH / f"{name}.npz", **arrays)  # pyright: ignore[reportArgumentType]
    print(f"{len(list(SNAPSHOTS_PATH.glob('*.npz')))} snapshots in {SNAPSHOTS_PATH}")


if __name__ == "__main__":
    main()
