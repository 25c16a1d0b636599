"""The key-value cache and the attention of decoding, on several architectures, against models that use neither."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    Qwen2Config,
    Qwen3NextConfig,
)

from cs336_alignment.rollout import decoding
from cs336_alignment.rollout.engine import Sampling
from cs336_alignment.rollout.transformers_engine import TransformersEngine
from tests import references

SIZES = {
    "hidden_size": 48,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
}
CONFIGS = {
    "llama": LlamaConfig,
    "mistral, a sliding window": lambda **sizes: MistralConfig(sliding_window=7, **sizes),
    "olmo2": Olmo2Config,
    "qwen2, a window in one layer": lambda **sizes: Qwen2Config(
        use_sliding_window=True, sliding_window=7, max_window_layers=1, **sizes
    ),
}
# A common beginning, more prompts than are run at once, and lengths that differ within and between those.
PROMPTS = ["Question: " + "and so on, " * (number % 7) + "why?" for number in range(11)]


@pytest.fixture(params=CONFIGS)
def folder(request, tokenizer, tmp_path):
    torch.manual_seed(0)
    config = CONFIGS[request.param](vocab_size=len(tokenizer), **SIZES)
    model = AutoModelForCausalLM.from_config(config)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3 if weight.ndim > 1 else 1.0)  # far from uniform, so that errors show
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    return tmp_path


def test_log_probs_of_every_architecture(folder, tokenizer, monkeypatch):
    # Room for 5 tokens, so that the cache grows; stop strings, so that sequences leave and others take their places.
    monkeypatch.setattr(decoding, "ROOM", 5)
    engine = TransformersEngine(folder)
    assert engine.model.config._attn_implementation == decoding.DECODING_ATTENTION
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager")
    drawn = engine.generate(PROMPTS, Sampling(max_tokens=20, n=3, stop=("e", "a")))
    assert len({len(completion.token_ids) for completions in drawn for completion in completions}) > 5
    for prompt, completions in zip(PROMPTS, drawn, strict=True):
        prompt_ids = tokenizer(prompt)["input_ids"]
        for completion in completions:
            with torch.no_grad():
                logits = reference(torch.tensor([[*prompt_ids, *completion.token_ids]]), use_cache=False).logits[0]
            log_p = references.log_softmax(logits[len(prompt_ids) - 1 : -1].numpy())
            expected = log_p[np.arange(len(completion.token_ids)), list(completion.token_ids)]
            assert completion.log_probs == pytest.approx(expected.tolist(), rel=1e-4, abs=1e-4)


def test_another_kind_of_layer_is_refused():
    config = Qwen3NextConfig(num_hidden_layers=2, layer_types=["linear_attention", "full_attention"])
    with pytest.raises(ValueError, match=r"cannot decode a qwen3_next \(LinearAttentionLayer\): use vLLM"):
        decoding.roomy_cache(config)


def test_join_by_hand():
    first, second = torch.tensor([1.0, 2.0, 3.0]).view(1, 1, 3, 1), torch.tensor([[4.0], [5.0]]).view(2, 1, 1, 1)
    held = decoding.join([first, second], copies=2, room=4)[:, 0, :3, 0]
    assert held.tolist() == [[1, 2, 3], [1, 2, 3], [0, 0, 4], [0, 0, 4], [0, 0, 5], [0, 0, 5]]


def test_tokens_are_written_in_place_until_the_room_is_used(monkeypatch):
    monkeypatch.setattr(decoding, "ROOM", 2)
    tensor = decoding.RoomyTensor(torch.zeros(3, 1, 1, 1), length=1)
    places = []
    for number in range(1, 6):
        tensor.append(torch.full((3, 1, 1, 1), float(number)))
        places.append(tensor.held.data_ptr())
    assert tensor.held[0].flatten().tolist() == [0, 1, 2, 3, 4, 5]
    assert [now == before for before, now in pairwise(places)] == [True, False, True, False]


def test_select_fills_gaps():
    tensor = decoding.RoomyTensor(torch.arange(5.0).view(5, 1, 1, 1), length=1)
    tensor.select(torch.tensor([0, 4, 2]))
    assert tensor.held.flatten().tolist() == [0, 4, 2]
