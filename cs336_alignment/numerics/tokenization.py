"""Prompt and response strings to the tensors that a causal language model trains on (handout section 4)."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor


def tokenize_prompt_and_output(
    prompt_strs: Sequence[str],
    output_strs: Sequence[str],
    tokenizer: Callable[..., Any],
) -> dict[str, Int[Tensor, "batch seq"] | Bool[Tensor, "batch seq"]]:
    """Tokenise prompts and outputs separately, concatenate, and mark the response tokens among the labels.

    Args:
        prompt_strs: the prompts, one a row. BOS, where the tokenizer adds one, comes with the prompt.
        output_strs: the outputs, as many; tokenised without special tokens. EOS is not appended: where the model is to
            learn to stop, the output string ends in the tokenizer's EOS.
        tokenizer: a Hugging Face tokenizer.

    Returns:
        With `seq` = max over rows of (prompt length + output length) - 1:
        `input_ids`, int64 (batch, seq): the rows, padded on the right, without their last column;
        `labels`, int64 (batch, seq): the same without their first column;
        `response_mask`, bool (batch, seq): true where the label is a response token. Built from lengths, not from ids,
            because the padding token may be the EOS that ends a response.

    Raises:
        ValueError: no rows, or a different number of prompts and outputs.

    Source: handout, problem tokenize_prompt_and_output.
    """
    if not prompt_strs or len(prompt_strs) != len(output_strs):
        raise ValueError(f"need one output a prompt, at least one: got {len(prompt_strs)} and {len(output_strs)}")
    prompts = [tokenizer(prompt)["input_ids"] for prompt in prompt_strs]
    outputs = [tokenizer(output, add_special_tokens=False)["input_ids"] for output in output_strs]
    return collate_prompt_and_output(prompts, outputs, pad_id=padding_id(tokenizer))


def collate_prompt_and_output(
    prompt_ids: Sequence[Sequence[int]],
    output_ids: Sequence[Sequence[int]],
    pad_id: int,
) -> dict[str, Int[Tensor, "batch seq"] | Bool[Tensor, "batch seq"]]:
    """`tokenize_prompt_and_output` after the tokenizer: token ids in, the same three tensors out.

    Sampled responses enter here, with the ids that were sampled: text is never tokenised a second time.
    """
    rows = list(zip(prompt_ids, output_ids, strict=True))
    width = max(len(prompt) + len(output) for prompt, output in rows)
    ids = torch.full((len(rows), width), pad_id, dtype=torch.int64)
    response_mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for row, (prompt, output) in enumerate(rows):
        start, end = len(prompt), len(prompt) + len(output)
        ids[row, :end] = torch.tensor([*prompt, *output], dtype=torch.int64)
        response_mask[row, start:end] = True
    return {"input_ids": ids[:, :-1], "labels": ids[:, 1:], "response_mask": response_mask[:, 1:]}


def padding_id(tokenizer: Any) -> int:
    """The id to pad with: the tokenizer's pad token, else its EOS, else 0. Masks make the choice immaterial."""
    for token_id in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token_id is not None:
            return token_id
    return 0
