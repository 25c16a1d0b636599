"""The embedded policy as committed: its tokenizer's promises, its shape, its card, and how unfinished it is."""

import hashlib
import importlib.util
import random
import re
import sys
import unicodedata
from operator import add, mul, sub, truediv
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from cs336_alignment.drgrpo_grader import question_only_reward_fn, r1_zero_reward_fn
from cs336_alignment.prompts import fill, load_template
from cs336_alignment.rollout.engine import Completion, Sampling
from cs336_alignment.rollout.transformers_engine import TransformersEngine
from cs336_alignment.tasks.gsm8k import load_problems

ROOT = Path(__file__).resolve().parents[1]
POLICY = ROOT / "data" / "policy"
TEST_SET = ROOT / "data" / "arithmetic" / "test.jsonl"
TAGS = ("<think>", "</think>", "<answer>", "</answer>")
TOKENIZER: Any = AutoTokenizer.from_pretrained(POLICY)


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """The training script as a module; its folder is not a package."""
    spec = importlib.util.spec_from_file_location(
        "train_embedded_policy", ROOT / "scripts" / "train_embedded_policy.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@given(st.text())
def test_any_text_survives_the_round_trip(text: str) -> None:
    """Up to Unicode's canonical form NFC, into which every Qwen2 tokenizer puts its input."""
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == unicodedata.normalize("NFC", text)


def test_prompt_and_response_survive_the_round_trip_apart() -> None:
    for problem in load_problems(TEST_SET)[:50]:
        prompt = fill(load_template("r1_zero"), question=problem.question)
        response = f" {problem.rationale} </think> <answer> {problem.gold} </answer>"
        ids = TOKENIZER.encode(prompt) + TOKENIZER.encode(response)
        assert TOKENIZER.decode(ids, skip_special_tokens=True) == prompt + response


def test_tags_are_ordinary_tokens_that_decoding_keeps() -> None:
    for tag in TAGS:
        assert len(TOKENIZER.encode(tag)) == 1
        assert TOKENIZER.decode(TOKENIZER.encode(tag), skip_special_tokens=True) == tag


def test_the_fixed_parts_of_the_prompt_are_two_tokens() -> None:
    assert len(TOKENIZER.encode(fill(load_template("r1_zero"), question=""))) == 2


def test_digits_are_split_singly() -> None:
    assert [TOKENIZER.decode([i]) for i in TOKENIZER.encode("123 + 45")] == ["1", "2", "3", " +", " ", "4", "5"]
    assert not [token for token in TOKENIZER.get_vocab() if len(re.findall(r"\d", token)) > 1]


def test_end_and_padding_differ_and_nothing_is_added() -> None:
    assert TOKENIZER.eos_token_id is not None
    assert TOKENIZER.pad_token_id is not None
    assert TOKENIZER.eos_token_id != TOKENIZER.pad_token_id
    assert TOKENIZER.bos_token_id is None
    assert TOKENIZER.encode("") == []
    assert TOKENIZER.decode([TOKENIZER.eos_token_id, TOKENIZER.pad_token_id], skip_special_tokens=True) == ""


def test_configuration_suits_vllm_and_two_ranks() -> None:
    config: Any = AutoConfig.from_pretrained(POLICY)
    assert config.model_type == "qwen2"
    assert config.architectures == ["Qwen2ForCausalLM"]
    assert config.hidden_size == 32 * config.num_attention_heads
    for divided in (
        config.num_attention_heads,
        config.num_key_value_heads,
        config.intermediate_size,
        config.vocab_size,
    ):
        assert divided % 2 == 0
    assert config.num_attention_heads % config.num_key_value_heads == 0
    assert config.max_position_embeddings >= 2048
    assert config.vocab_size == len(TOKENIZER)
    generation = GenerationConfig.from_pretrained(POLICY)
    for settings in (config, generation):
        assert settings.eos_token_id == TOKENIZER.eos_token_id
        assert settings.pad_token_id == TOKENIZER.pad_token_id
        assert settings.bos_token_id is None


def test_weights_are_small_and_bfloat16() -> None:
    path = POLICY / "model.safetensors"
    assert path.stat().st_size <= 20e6
    with safe_open(path, framework="pt") as tensors:
        assert {tensors.get_slice(name).get_dtype() for name in tensors.keys()} == {"BF16"}  # noqa: SIM118
    model = AutoModelForCausalLM.from_pretrained(POLICY)
    assert model.num_parameters() * 2 <= path.stat().st_size


def test_the_card_names_the_files_that_are_here() -> None:
    card = (POLICY / "README.md").read_text(encoding="utf-8")
    digests = dict(re.findall(r"\| `([\w.]+)` \| `([0-9a-f]{64})` \|", card))
    files = {path.name for path in POLICY.iterdir()} - {"README.md"}
    assert digests == {name: hashlib.sha256((POLICY / name).read_bytes()).hexdigest() for name in files}


def test_the_policy_is_unfinished_and_ends_its_answers() -> None:
    for temperature, format_range, accuracy_range in (
        (1.0, (0.30, 0.70), (0.05, 0.30)),
        (0.0, (0.30, 1.0), (0.0, 0.35)),
    ):
        completions, rewards = sample_and_grade(temperature)
        for component, (low, high) in (("format_reward", format_range), ("reward", accuracy_range)):
            assert low <= sum(reward[component] for reward in rewards) / len(rewards) <= high
        assert {completion.finish_reason for completion in completions} == {"stop"}
        assert sum(len(completion.token_ids) for completion in completions) / len(completions) < 80


def sample_and_grade(temperature: float) -> tuple[list[Completion], list[dict[str, float]]]:
    problems = load_problems(TEST_SET)[:150]
    prompts = [fill(load_template("r1_zero"), question=problem.question) for problem in problems]
    with TransformersEngine(POLICY) as engine:
        completions = [group[0] for group in engine.generate(prompts, Sampling(temperature=temperature, seed=1))]
    rewards = [r1_zero_reward_fn(c.text, problem.gold) for c, problem in zip(completions, problems, strict=True)]
    return completions, rewards


def test_the_script_rebuilds_the_committed_tokenizer(script: ModuleType, tmp_path: Path) -> None:
    """Also that AutoTokenizer, which picks its class by the model beside it, splits text as in training."""
    config = script.Config()
    examples = script.splits()["train"]
    trained = script.build_tokenizer(examples, config.vocab_size)
    trained.save_pretrained(tmp_path)
    assert (tmp_path / "tokenizer.json").read_bytes() == (POLICY / "tokenizer.json").read_bytes()
    rng = random.Random(0)
    for pieces in script.documents(examples[:100], config.haste, config, rng):
        for piece in pieces:
            assert TOKENIZER.encode(piece) == trained.encode(piece)


def test_the_corpus_never_shows_dev_or_test(script: ModuleType) -> None:
    held_out = {problem.question for split in ("dev", "test") for problem in load_problems(TEST_SET.with_stem(split))}
    corpus = script.corpus(script.Config())
    assert not held_out & {example.question for example in corpus}


def test_only_responses_are_learned(script: ModuleType) -> None:
    pieces = ["2 + 3 =", " 5\n", "9 - 4 =", " 5\n"]
    ids, labels = script.encode(pieces, TOKENIZER)
    assert TOKENIZER.decode(ids.tolist()) == "".join(pieces)
    assert TOKENIZER.decode(labels[labels != script.IGNORED].tolist()) == " 5\n 5\n"
    assert all(label in (script.IGNORED, token) for token, label in zip(ids.tolist(), labels.tolist(), strict=True))


def test_drills_hold_right_sums_and_nothing_else(script: ModuleType) -> None:
    examples = script.splits()["train"][:300]
    pieces = [piece for seed in range(20) for piece in script.drill(examples, random.Random(seed))]
    signs = set()
    for question, result in zip(pieces[::2], pieces[1::2], strict=True):
        left, sign, right, equals = question.split()
        assert {"+": add, "-": sub, "*": mul, "/": truediv}[sign](int(left), int(right)) == int(result)
        assert equals == "="
        signs.add(sign)
    assert signs == set("+-*/")


def test_haste_leaves_the_result_alone(script: ModuleType) -> None:
    config = script.Config(boxed_share=0.0)
    example = script.splits()["train"][0]
    always = script.Stage(steps=1, learning_rate=0.0, hasty_share=1.0)
    _, written_out = script.document(example, config.lessons, config, random.Random(0))
    _, hasty = script.document(example, always, config, random.Random(0))
    assert written_out.count("=") == len(example.answer.splitlines()) - 1
    assert "=" not in hasty
    assert example.answer.split("#### ")[1] in hasty


def test_each_stage_ends_at_a_learning_rate_of_zero(script: ModuleType) -> None:
    stage = script.Stage(steps=200, learning_rate=0.5, hasty_share=0.0)
    rates = [script.learning_rate(step, stage) for step in range(1, 201)]
    assert max(rates) == script.learning_rate(20, stage) == 0.5
    assert rates[0] == pytest.approx(0.025)
    assert rates[-1] == pytest.approx(0.0, abs=1e-12)


def test_only_the_first_ending_has_the_format_and_it_earns_the_reward(script: ModuleType) -> None:
    for position, (ending, _) in enumerate(script.ENDINGS):
        rewards = r1_zero_reward_fn(ending.format(rationale="2 + 3 = 5 apples.", gold="5"), "5")
        assert rewards["format_reward"] == rewards["reward"] == float(position == 0)
    boxed = script.BOXED_ENDING.format(rationale="2 + 3 = 5 apples.", gold="5")
    assert question_only_reward_fn(boxed, "5")["reward"] == 1.0
