"""The course's test adapters: one import and one return each, in the course's argument order."""

from typing import Any


def run_tokenize_prompt_and_output(prompt_strs, output_strs, tokenizer) -> dict[str, Any]:
    from cs336_alignment.numerics.tokenization import tokenize_prompt_and_output

    return tokenize_prompt_and_output(prompt_strs, output_strs, tokenizer)


def run_compute_entropy(logits):
    from cs336_alignment.numerics.log_probs import compute_entropy

    return compute_entropy(logits)


def run_get_response_log_probs(model, input_ids, labels, return_token_entropy) -> dict[str, Any]:
    from cs336_alignment.numerics.log_probs import get_response_log_probs

    return get_response_log_probs(model, input_ids, labels, return_token_entropy)


def run_masked_normalize(tensor, mask, dim=None, normalize_constant=1.0):
    from cs336_alignment.numerics.masking import masked_normalize

    return masked_normalize(tensor, mask, dim=dim, normalize_constant=normalize_constant)


def run_masked_mean(tensor, mask, dim=None):
    from cs336_alignment.numerics.masking import masked_mean

    return masked_mean(tensor, mask, dim=dim)


def run_sft_microbatch_train_step(
    policy_log_probs, response_mask, gradient_accumulation_steps, normalize_constant=1.0
) -> tuple[Any, dict[str, Any]]:
    from cs336_alignment.training.microbatch import sft_microbatch_train_step

    return sft_microbatch_train_step(policy_log_probs, response_mask, gradient_accumulation_steps, normalize_constant)


def run_compute_group_normalized_rewards(
    reward_fn, rollout_responses, repeated_ground_truths, group_size, advantage_eps, normalize_by_std
) -> tuple[Any, Any, dict[str, float]]:
    from cs336_alignment.numerics.advantages import compute_group_normalized_rewards

    return compute_group_normalized_rewards(
        reward_fn, rollout_responses, repeated_ground_truths, group_size, advantage_eps, normalize_by_std
    )


def run_compute_naive_policy_gradient_loss(raw_rewards_or_advantages, policy_log_probs):
    from cs336_alignment.numerics.policy_gradient import compute_naive_policy_gradient_loss

    return compute_naive_policy_gradient_loss(raw_rewards_or_advantages, policy_log_probs)


def run_compute_grpo_clip_loss(advantages, policy_log_probs, old_log_probs, cliprange) -> tuple[Any, dict[str, Any]]:
    from cs336_alignment.numerics.policy_gradient import compute_grpo_clip_loss

    return compute_grpo_clip_loss(advantages, policy_log_probs, old_log_probs, cliprange)


def run_compute_policy_gradient_loss(
    policy_log_probs, loss_type, raw_rewards, advantages, old_log_probs, cliprange
) -> tuple[Any, dict[str, Any]]:
    from cs336_alignment.numerics.policy_gradient import compute_policy_gradient_loss

    return compute_policy_gradient_loss(policy_log_probs, loss_type, raw_rewards, advantages, old_log_probs, cliprange)


def run_grpo_microbatch_train_step(
    policy_log_probs,
    response_mask,
    gradient_accumulation_steps,
    loss_type,
    raw_rewards=None,
    advantages=None,
    old_log_probs=None,
    cliprange=None,
) -> tuple[Any, dict[str, Any]]:
    from cs336_alignment.training.microbatch import grpo_microbatch_train_step

    return grpo_microbatch_train_step(
        policy_log_probs,
        response_mask,
        gradient_accumulation_steps,
        loss_type,
        raw_rewards=raw_rewards,
        advantages=advantages,
        old_log_probs=old_log_probs,
        cliprange=cliprange,
    )


def get_packed_sft_dataset(tokenizer, dataset_path, seq_length, shuffle):
    from cs336_alignment.tasks.sft_examples import PackedSFTDataset

    return PackedSFTDataset(tokenizer, dataset_path, seq_length, shuffle)


def run_iterate_batches(dataset, batch_size, shuffle):
    from cs336_alignment.tasks.sft_examples import iterate_batches

    return iterate_batches(dataset, batch_size, shuffle)


def run_parse_mmlu_response(mmlu_example, model_output) -> str | None:
    from cs336_alignment.tasks.mmlu import parse_mmlu_response

    return parse_mmlu_response(mmlu_example, model_output)


def run_parse_gsm8k_response(model_output) -> str | None:
    from cs336_alignment.tasks.gsm8k import parse_gsm8k_response

    return parse_gsm8k_response(model_output)


def run_compute_per_instance_dpo_loss(lm, lm_ref, tokenizer, beta, prompt, response_chosen, response_rejected):
    from cs336_alignment.training.dpo import compute_per_instance_dpo_loss

    return compute_per_instance_dpo_loss(lm, lm_ref, tokenizer, beta, prompt, response_chosen, response_rejected)
