"""The transformers engine, the records, and which engine is chosen."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from cs336_alignment.rollout.engine import Sampling, check_prompt_lengths, derive_seed
from cs336_alignment.rollout.selection import EngineNotInstalledError, choose_engine, open_engine
from cs336_alignment.rollout.transformers_engine import CDF_BLOCK, TransformersEngine, invert_cdf, keep_top_p
from tests import references
from tests.common import TINY_QWEN2

PROMPTS = ["The quick brown fox", "A", "Natalia sold 48 clips in April and half as many in May. How many"]
SHORT = Sampling(max_tokens=12, stop=())


@pytest.fixture(scope="module")
def engine():
    with TransformersEngine(TINY_QWEN2) as engine:
        yield engine


def next_token_log_probs(model, ids, vocab_size, temperature=1.0):
    """log p of the next token after `ids`, without padding or cache, in float64, over the tokenizer's tokens alone."""
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0, -1].double().numpy()
    return references.log_softmax(logits[:vocab_size] / temperature)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probs_are_those_of_what_was_sampled(engine, model, tokenizer, temperature):
    # Also shows that padding, the cache and the order of the batch change nothing.
    sampling = replace(SHORT, temperature=temperature, n=2)
    for prompt, completions in zip(PROMPTS, engine.generate(PROMPTS, sampling), strict=True):
        for completion in completions:
            ids = tokenizer(prompt)["input_ids"]
            for token_id, log_prob in zip(completion.token_ids, completion.log_probs, strict=True):
                expected = next_token_log_probs(model, ids, len(tokenizer), temperature)[token_id]
                assert log_prob == pytest.approx(expected, rel=1e-4, abs=1e-5)
                ids = [*ids, token_id]


def test_greedy_takes_the_likeliest_token(engine, model, tokenizer):
    for prompt, [completion] in zip(PROMPTS, engine.generate(PROMPTS, replace(SHORT, temperature=0)), strict=True):
        ids = tokenizer(prompt)["input_ids"]
        for token_id in completion.token_ids:
            assert token_id == next_token_log_probs(model, ids, len(tokenizer)).argmax()
            ids = [*ids, token_id]


def test_same_seed_same_bits_and_other_seed_other_draws(engine):
    first, again = (engine.generate(PROMPTS, SHORT) for _ in range(2))
    assert first == again
    assert engine.generate(PROMPTS, replace(SHORT, seed=1)) != first


def test_draws_of_one_prompt_and_of_equal_prompts_differ(engine):
    completions = engine.generate(["A", "A"], replace(SHORT, n=3))
    assert [len(drawn) for drawn in completions] == [3, 3]
    assert len({completion.token_ids for drawn in completions for completion in drawn}) == 6


def test_a_completion_does_not_depend_on_its_batch(model):
    texts = []
    for max_batch_size in (1, 2, 64):
        engine = TransformersEngine(TINY_QWEN2, max_batch_size=max_batch_size)
        texts.append([[c.token_ids for c in drawn] for drawn in engine.generate(PROMPTS, replace(SHORT, n=2))])
    assert texts[0] == texts[1] == texts[2]


def test_padded_vocabulary_is_never_sampled(engine, tokenizer):
    assert engine.model.config.vocab_size > len(tokenizer)
    hot = Sampling(temperature=50.0, max_tokens=40, n=16, stop=())
    sampled = {token for c in engine.generate(["A"], hot)[0] for token in c.token_ids}
    assert len(sampled) > 100
    assert max(sampled) < len(tokenizer)


class Scripted(torch.nn.Module):
    """A model that says `script`, whatever it is asked: each row's next token follows from how many came before."""

    def __init__(self, model, script):
        super().__init__()
        self.config, self.generation_config, self.script = model.config, model.generation_config, script

    def forward(self, ids, attention_mask, position_ids, past_key_values, **_):
        keys = torch.zeros(len(ids), 1, ids.shape[1], 1)
        for layer in range(self.config.num_hidden_layers):
            past_key_values.update(keys, keys, layer)
        logits = torch.full((len(ids), 1, self.config.vocab_size), -100.0)
        step = past_key_values.get_seq_length() - self.prompt_length
        logits[:, :, self.script[step]] = 0.0
        return type("Output", (), {"logits": logits})


@pytest.fixture
def say(tokenizer):
    """A function that has the engine say a text (and then EOS for ever) under some sampling."""

    def say(text, **sampling):
        engine = TransformersEngine(TINY_QWEN2)
        script = tokenizer(text)["input_ids"] + [tokenizer.eos_token_id] * 50
        engine.model = Scripted(engine.model, script)
        engine.model.prompt_length = len(tokenizer("A")["input_ids"])
        options = {"max_tokens": 40, **sampling}
        return engine.generate(["A"], Sampling(**options))[0][0]

    return say


def test_eos_ends_a_completion_and_stays_among_its_ids(say, tokenizer):
    completion = say("Hello world", stop=())
    assert completion.text == "Hello world"
    assert completion.token_ids == (*tokenizer("Hello world")["input_ids"], tokenizer.eos_token_id)
    assert completion.finish_reason == "stop"


def test_a_stop_string_ends_a_completion_and_stays_in_its_text(say, tokenizer):
    completion = say("so </answer> and more", stop=("</answer>",))
    assert completion.text == "so </answer>"
    assert completion.finish_reason == "stop"
    # Ids keep the whole token in which the string was completed.
    assert tokenizer.decode(completion.token_ids).startswith("so </answer>")
    assert len(completion.token_ids) == len(completion.log_probs)


def test_the_first_of_several_stop_strings_wins(say):
    assert say("one two three", stop=("three", "two")).text == "one two"


def test_max_tokens_cuts(say):
    completion = say("Hello world, this goes on", max_tokens=2, stop=())
    assert (len(completion.token_ids), completion.finish_reason) == (2, "length")


def test_min_tokens_holds_off_eos(say, tokenizer):
    completion = say("", min_tokens=3, stop=())
    assert tokenizer.eos_token_id not in completion.token_ids[:3]
    assert completion.token_ids[3] == tokenizer.eos_token_id


def test_a_stop_string_inside_min_tokens_does_not_count(say, tokenizer):
    text = "ab stop cd stop ef"
    tokens_to_second = len(tokenizer("ab stop cd stop")["input_ids"])
    completion = say(text, stop=("stop",), min_tokens=tokens_to_second - 1)
    assert completion.text == "ab stop cd stop"


def test_stop_strings_side_by_side_with_ignored_ones(say, tokenizer):
    first = len(tokenizer("zq")["input_ids"])
    assert say("zq zq zq zq xx", stop=("zq",), min_tokens=first).text == "zq zq"


def test_a_token_with_two_stop_strings_is_cut_at_the_first(say, tokenizer):
    [token_id] = [token for token in range(len(tokenizer)) if tokenizer.decode([token]) == " the"]
    assert token_id in tokenizer("in the")["input_ids"]
    assert say("in the end", stop=("he", "t")).text == "in t"


def test_a_long_neighbour_does_not_shorten_a_completion(engine, tokenizer):
    room = Sampling(max_tokens=30, stop=(), min_tokens=30)
    long = tokenizer.decode(tokenizer("a b c d e f g h " * 200)["input_ids"][:500])
    left = 512 - len(tokenizer(long)["input_ids"])
    assert 0 < left < 30
    [alone], [beside], [cut] = engine.generate(["A"], room) + engine.generate(["A", long], room)
    assert beside.token_ids == alone.token_ids
    assert len(alone.token_ids) == 30
    assert (len(cut.token_ids), cut.finish_reason) == (left, "length")


def test_finished_sequences_leave_the_batch(engine, monkeypatch):
    sizes = []
    forward = engine._forward

    def counting_forward(ids, attention_mask, cache):
        sizes.append(len(ids))
        return forward(ids, attention_mask, cache)

    monkeypatch.setattr(engine, "_forward", counting_forward)
    completions = engine.generate(["A"], Sampling(max_tokens=60, n=16, stop=("e", "a")))[0]
    lengths = [len(completion.token_ids) for completion in completions]
    assert min(lengths) < max(lengths)
    # First the prompt; then, after so many tokens of each, those sequences that are not at their ends.
    assert sizes == [1, *(sum(length > step for length in lengths) for step in range(1, max(lengths)))]
    assert (
        TransformersEngine(TINY_QWEN2).generate(["A"], Sampling(max_tokens=60, n=16, stop=("e", "a")))[0] == completions
    )


def test_the_models_last_position_ends_a_completion(engine, tokenizer):
    room = 5
    ids = tokenizer("a b c d e f g h " * 200)["input_ids"][: engine.model.config.max_position_embeddings - room]
    prompt = tokenizer.decode(ids)
    room = engine.model.config.max_position_embeddings - len(tokenizer(prompt)["input_ids"])
    completion = engine.generate([prompt], Sampling(max_tokens=100, stop=(), min_tokens=100))[0][0]
    assert (len(completion.token_ids), completion.finish_reason) == (room, "length")


def test_an_overlong_prompt_is_named(engine):
    with pytest.raises(ValueError, match=r"prompt 1 has .* tokens; the model has 512 positions"):
        engine.generate(["A", "word " * 600], SHORT)
    with pytest.raises(ValueError, match="prompt 0 has no tokens"):
        check_prompt_lengths([0], 10)


def test_load_policy_replaces_the_weights(engine, model):
    before = engine.generate(PROMPTS, SHORT)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    moved = {name: tensor + 0.05 * torch.ones_like(tensor).cumsum(0) / len(tensor) for name, tensor in weights.items()}
    engine.load_policy(moved.items(), version=3)
    assert engine.policy_version == 3
    assert engine.generate(PROMPTS, SHORT) != before
    engine.load_policy(weights.items(), version=4)
    assert engine.generate(PROMPTS, SHORT) == before


def test_load_policy_refuses_a_missing_head(engine, model):
    weights = {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    with pytest.raises(KeyError, match=r"given without lm_head\.weight"):
        engine.load_policy(weights.items(), version=1)


def test_keep_top_p_by_hand():
    # Probabilities 0.5, 0.3, 0.2: 0.5 alone reaches 0.5; 0.6 needs 0.5 + 0.3.
    logits = torch.tensor([[0.2, 0.5, 0.3]]).log()
    assert keep_top_p(logits, 0.5).isfinite().tolist() == [[False, True, False]]
    assert keep_top_p(logits, 0.6).isfinite().tolist() == [[False, True, True]]
    assert keep_top_p(logits, 0.99).isfinite().tolist() == [[True, True, True]]


def test_top_p_is_applied(engine, model, tokenizer):
    greedy = engine.generate(PROMPTS, replace(SHORT, temperature=0))
    narrow = engine.generate(PROMPTS, replace(SHORT, top_p=1e-6))
    assert [d[0].token_ids for d in narrow] == [d[0].token_ids for d in greedy]
    assert all(log_prob == 0 for drawn in narrow for log_prob in drawn[0].log_probs)


def test_invert_cdf_by_hand():
    probs = torch.tensor([[0.0, 0.25, 0.0, 0.75, 0.0]], dtype=torch.float64)
    for uniform, token in ((1e-300, 1), (0.25, 1), (0.2500001, 3), (1.0, 3)):
        assert invert_cdf(probs, torch.tensor([uniform], dtype=torch.float64)).item() == token


def test_invert_cdf_of_a_vocabulary_of_several_blocks():
    # The references are numpy's, on the whole cumulative sum; every third token has probability 0.
    generator = np.random.default_rng(0)
    probs = generator.random((2, 3 * CDF_BLOCK + 5)) ** 8
    probs[:, ::3] = 0
    probs[:, CDF_BLOCK : 2 * CDF_BLOCK] = 0  # a whole block
    cdf = probs.cumsum(axis=1)
    for _ in range(200):
        uniforms = 1 - generator.random(2)
        found = invert_cdf(torch.from_numpy(probs), torch.from_numpy(uniforms)).tolist()
        assert found == [np.searchsorted(row, uniform * row[-1]) for row, uniform in zip(cdf, uniforms, strict=True)]
    # The ends of blocks and of everything, where rounding would lead into tokens of probability 0.
    for uniform in (1.0, cdf[0, CDF_BLOCK - 1] / cdf[0, -1], cdf[0, 2 * CDF_BLOCK] / cdf[0, -1]):
        for dtype in (torch.float32, torch.float64):
            rows = torch.from_numpy(probs).to(dtype)
            found = invert_cdf(rows, torch.full((2,), uniform, dtype=torch.float64))
            assert rows.gather(1, found.unsqueeze(1)).min() > 0


def test_sampled_frequencies_are_the_distribution(engine, model, tokenizer):
    # 4,000 first tokens; each of the ten likeliest within 5 standard errors of its probability.
    expected = np.exp(next_token_log_probs(model, tokenizer("A")["input_ids"], len(tokenizer)))
    draws = 4000
    completions = engine.generate(["A"], Sampling(max_tokens=1, n=draws, stop=(), seed=7))[0]
    counts = np.bincount([completion.token_ids[0] for completion in completions], minlength=len(expected))
    for token in np.argsort(expected)[-10:]:
        p = expected[token]
        assert abs(counts[token] / draws - p) < 5 * math.sqrt(p * (1 - p) / draws)


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1.0},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"max_tokens": 0},
        {"min_tokens": -1},
        {"min_tokens": 5, "max_tokens": 4},
        {"stop": ("",)},
        {"n": 0},
        {"n": 2, "temperature": 0.0},
        {"seed": -1},
    ],
)
def test_sampling_refuses_nonsense(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Sampling(**wrong)


def test_derived_seeds_are_stable_and_distinct():
    seeds = {derive_seed(0, i) for i in range(1000)} | {derive_seed(1, i) for i in range(1000)}
    assert len(seeds) == 2000
    assert max(seeds) < 2**48
    assert derive_seed(0, 1) == derive_seed(0, 1) != derive_seed(1, 0)


@pytest.mark.parametrize(
    ("name", "installed", "gpu", "chosen"),
    [
        ("auto", True, True, "vllm"),
        ("auto", True, False, "vllm"),
        ("auto", False, False, "transformers"),
        ("vllm", True, False, "vllm"),
        ("transformers", True, True, "transformers"),
        ("transformers", False, True, "transformers"),
    ],
)
def test_choose_engine(name, installed, gpu, chosen):
    assert choose_engine(name, installed, gpu) == chosen


@pytest.mark.parametrize(("name", "gpu"), [("auto", True), ("vllm", True), ("vllm", False)])
def test_missing_vllm_is_an_error_with_the_install_command(name, gpu):
    with pytest.raises(EngineNotInstalledError, match=r"\n    uv sync --extra gpu(\n|$)"):
        choose_engine(name, False, gpu)


def test_tensor_parallelism_needs_vllm():
    with pytest.raises(EngineNotInstalledError, match="tensor_parallel_size 2"):
        open_engine("transformers", TINY_QWEN2, tensor_parallel_size=2)
