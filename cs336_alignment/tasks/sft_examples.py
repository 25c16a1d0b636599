"""Instruction data for supervised fine-tuning, packed into sequences of one length (problem data_loading).

Documents are concatenated, each ended by EOS, and cut every `seq_length` tokens: no padding, no wasted compute.
"""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cs336_alignment.prompts import alpaca_template, fill
from cs336_alignment.tasks.json_lines import read_json_lines, text_field


class PackedSFTDataset(Dataset[dict[str, Tensor]]):
    """Sequences of `seq_length` tokens cut from all documents end to end.

    A document is the Alpaca template filled with a row's `prompt` and `response`, tokenised with the special tokens the
    tokenizer adds (BOS for Llama, none for Qwen), then EOS. Item i holds `input_ids`, tokens [i * L, (i + 1) * L), and
    `labels`, the same one token later; both int64 (seq_length,). What is left at the end is dropped.
    """

    def __init__(
        self,
        tokenizer: Callable[..., Any],
        dataset_path: str | Path,
        seq_length: int,
        shuffle: bool,
        seed: int = 0,
    ) -> None:
        """Read and tokenise `dataset_path`, a `.jsonl` or `.jsonl.gz` of `prompt` and `response`.

        Args:
            tokenizer: a Hugging Face tokenizer with an EOS token.
            dataset_path: the file.
            seq_length: tokens a sequence.
            shuffle: concatenate the documents in a random order, the same for the same `seed`.
            seed: of the shuffle.

        Raises:
            ValueError: a malformed line (the message names it), `seq_length` below 1, or a tokenizer without EOS.
        """
        if seq_length < 1:
            raise ValueError(f"seq_length must be at least 1, got {seq_length}")
        eos: int | None = getattr(tokenizer, "eos_token_id", None)
        if eos is None:
            raise ValueError("the tokenizer has no EOS token, which must end each document")
        documents = read_json_lines(dataset_path, _alpaca_document)
        if shuffle:
            random.Random(seed).shuffle(documents)
        tokens = [token for document in documents for token in [*tokenizer(document)["input_ids"], eos]]
        self._tokens = torch.tensor(tokens, dtype=torch.int64)
        self._seq_length = seq_length

    def __len__(self) -> int:
        return max(len(self._tokens) - 1, 0) // self._seq_length

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if not 0 <= index < len(self):
            raise IndexError(f"sequence {index} of {len(self)}")
        start = index * self._seq_length
        window = self._tokens[start : start + self._seq_length + 1]
        return {"input_ids": window[:-1], "labels": window[1:]}


def iterate_batches(dataset: Dataset[Any], batch_size: int, shuffle: bool) -> DataLoader[Any]:
    """One epoch of batches; the last may be smaller. Shuffling draws from torch's global generator.

    Source: the supplementary handout, problem data_loading.
    """
    return DataLoader(dataset, batch_size=batch_size, shuffle=shuffle)


def _alpaca_document(row: dict[str, Any]) -> str:
    return fill(alpaca_template(), instruction=text_field(row, "prompt"), response=text_field(row, "response"))
