"""Make the tiny random Qwen2 model and its tokenizer that the tests use (seed 42).

    uv run python -m tests.make_fixtures

The model's vocabulary is padded beyond the tokenizer's, and the pad token is the EOS, both as in Qwen2.5.
"""

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from cs336_alignment.prompts import load_template
from tests.common import TINY_QWEN2

EOS = "<|endoftext|>"
TOKENIZER_SIZE = 320
MODEL_VOCABULARY = 352
TEXTS = [
    load_template("r1_zero"),
    load_template("alpaca_sft"),
    "Natalia sold 48 clips in April and half as many in May. How many clips did she sell altogether?",
    "The quick brown fox jumps over the lazy dog. Pack my box with five dozen liquor jugs.",
]


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE, so that any text survives encoding and decoding."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=TOKENIZER_SIZE,
        special_tokens=[EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=EOS, pad_token=EOS)


def make_model(eos_token_id: int) -> Qwen2ForCausalLM:
    """Two layers, two heads of 32, tied embeddings; large random weights, for distributions far from uniform."""
    torch.manual_seed(42)
    config = Qwen2Config(
        vocab_size=MODEL_VOCABULARY,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        initializer_range=0.15,
        bos_token_id=None,
        eos_token_id=eos_token_id,
        pad_token_id=eos_token_id,
    )
    return Qwen2ForCausalLM(config)


def main() -> None:
    tokenizer = make_tokenizer()
    assert isinstance(tokenizer.eos_token_id, int)
    tokenizer.save_pretrained(TINY_QWEN2)
    make_model(tokenizer.eos_token_id).save_pretrained(TINY_QWEN2)


if __name__ == "__main__":
    main()
