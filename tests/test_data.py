"""Packed instruction data, batches, GSM8K's loader and preparation, and the prompt templates."""

import gzip
import hashlib
import json
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cs336_alignment.prompts import alpaca_template, fill, load_template
from cs336_alignment.tasks.gsm8k import load_problems, parse_answer
from cs336_alignment.tasks.problem import Problem
from scripts import prepare_gsm8k
from tests.adapters import get_packed_sft_dataset, run_iterate_batches

ROWS = [
    {"prompt": "What is 2 + 2?", "response": "4."},
    {"prompt": "Name a colour {response}.", "response": "Blue, for instance {instruction}."},
    {"prompt": "Say hello.", "response": "Hello! How can I help you today?"},
]


@pytest.fixture
def sample(tmp_path):
    path = tmp_path / "sample.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def packed_tokens(tokenizer):
    """All documents end to end: template, then EOS. Written out, not filled by the library."""
    tokens = []
    for row in ROWS:
        document = (
            "Below is an instruction that describes a task. Write a response that appropriately completes the request."
            "\n\n### Instruction:\n" + row["prompt"] + "\n\n### Response:\n" + row["response"]
        )
        tokens += [*tokenizer(document)["input_ids"], tokenizer.eos_token_id]
    return tokens


@pytest.mark.parametrize("seq_length", [1, 32])
def test_packed_sft_dataset(tokenizer, sample, seq_length):
    dataset = get_packed_sft_dataset(tokenizer, sample, seq_length, shuffle=False)
    tokens = packed_tokens(tokenizer)
    assert len(dataset) == (len(tokens) - 1) // seq_length
    for index in range(len(dataset)):
        start = index * seq_length
        assert dataset[index]["input_ids"].tolist() == tokens[start : start + seq_length]
        assert dataset[index]["labels"].tolist() == tokens[start + 1 : start + seq_length + 1]
    with pytest.raises(IndexError):
        dataset[len(dataset)]


def test_packed_sft_dataset_starts_documents_with_bos(bos_tokenizer, sample):
    dataset = get_packed_sft_dataset(bos_tokenizer, sample, 8, shuffle=False)
    tokens = [token for item in dataset for token in item["input_ids"].tolist()]
    assert tokens[0] == bos_tokenizer.bos_token_id
    assert all(
        tokens[i + 1] == bos_tokenizer.bos_token_id
        for i, token in enumerate(tokens[:-1])
        if token == bos_tokenizer.eos_token_id
    )


def test_packed_sft_dataset_reads_gzip(tokenizer, sample, tmp_path):
    zipped = tmp_path / "sample.jsonl.gz"
    zipped.write_bytes(gzip.compress(sample.read_bytes()))
    plain, unzipped = (get_packed_sft_dataset(tokenizer, path, 16, shuffle=False) for path in (sample, zipped))
    assert [item["labels"].tolist() for item in plain] == [item["labels"].tolist() for item in unzipped]


def test_packed_sft_dataset_shuffles_documents_reproducibly(tokenizer, tmp_path):
    path = tmp_path / "many.jsonl"
    path.write_text("".join(json.dumps({"prompt": str(i), "response": "x" * i}) + "\n" for i in range(20)))
    ordered, first, second = (get_packed_sft_dataset(tokenizer, path, 16, shuffle=s) for s in (False, True, True))
    stream = [[t for item in dataset for t in item["input_ids"].tolist()] for dataset in (ordered, first, second)]
    assert stream[0] != stream[1] == stream[2]


@pytest.mark.parametrize(
    ("line", "problem"),
    [("{", "Expecting"), ("[1]", "not a JSON object"), ('{"prompt": "x"}', "'response'"), ("", "Expecting value")],
)
def test_packed_sft_dataset_names_the_malformed_line(tokenizer, sample, line, problem):
    sample.write_text(json.dumps(ROWS[0]) + "\n" + line + "\n")
    with pytest.raises(ValueError, match=rf"{re.escape(str(sample))}, line 2: .*{problem}"):
        get_packed_sft_dataset(tokenizer, sample, 8, shuffle=False)


def test_packed_sft_dataset_refuses_impossible_lengths(tokenizer, sample):
    with pytest.raises(ValueError, match="seq_length"):
        get_packed_sft_dataset(tokenizer, sample, 0, shuffle=False)


def test_iterate_batches(tokenizer, sample):
    dataset = get_packed_sft_dataset(tokenizer, sample, 4, shuffle=False)
    batches = list(run_iterate_batches(dataset, batch_size=5, shuffle=False))
    assert len(batches) == len(run_iterate_batches(dataset, 5, False)) == math.ceil(len(dataset) / 5)
    assert batches[0]["input_ids"].shape == batches[0]["labels"].shape == (5, 4)
    rows = [row for batch in batches for row in batch["input_ids"].tolist()]
    assert rows == [dataset[i]["input_ids"].tolist() for i in range(len(dataset))]
    shuffled = [row for batch in run_iterate_batches(dataset, 5, True) for row in batch["input_ids"].tolist()]
    assert shuffled != rows
    assert sorted(shuffled) == sorted(rows)


def test_gsm8k_answer_by_hand():
    gold, rationale = parse_answer("In May 48/2 = <<48/2=24>>24.\nIn all 48+24 = <<48+24=72>>72 clips.\n#### 1,072")
    assert gold == "1072"
    assert rationale == "In May 48/2 = 24.\nIn all 48+24 = 72 clips."


@pytest.mark.parametrize("answer", ["72", "#### seventy-two", "#### 7 2", "####"])
def test_gsm8k_refuses_an_answer_without_a_final_number(answer):
    with pytest.raises(ValueError, match=r"final|####"):
        parse_answer(answer)


def test_gsm8k_loads_problems_in_order(tmp_path):
    path = tmp_path / "test.jsonl"
    rows = [{"question": f"q{i}", "answer": f"Because.\n#### -{i}.5"} for i in range(3)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert load_problems(path) == [Problem(f"q{i}", f"-{i}.5", "Because.") for i in range(3)]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"answer": "#### 1"}, "'question'"),
        ({"question": "q", "answer": 3}, "'answer'"),
        ({"question": "q", "answer": "1"}, "####"),
    ],
)
def test_gsm8k_names_the_malformed_line(tmp_path, row, problem):
    path = tmp_path / "train.jsonl"
    path.write_text(json.dumps({"question": "q", "answer": "#### 1"}) + "\n" + json.dumps(row) + "\n")
    with pytest.raises(ValueError, match=rf"train.jsonl, line 2: .*{problem}"):
        load_problems(path)


def fake_gsm8k(folder, train=3, test=2):
    folder.mkdir()
    for name, rows in {"train": train, "test": test}.items():
        lines = [json.dumps({"question": f"{name} {i}", "answer": f"#### {i}", "extra": 1}) for i in range(rows)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def test_prepare_gsm8k_refuses_other_rows_and_writes_nothing(tmp_path):
    source = fake_gsm8k(tmp_path / "source")
    config = prepare_gsm8k.Config(source=source, output=tmp_path / "out")
    with pytest.raises(SystemExit, match="7,473 problems, this source has 3"):
        prepare_gsm8k.main(config)
    assert not config.output.exists()


def test_prepare_gsm8k_checks_content_and_splits(tmp_path, monkeypatch, capsys):
    source = fake_gsm8k(tmp_path / "source")
    config = prepare_gsm8k.Config(source=source, output=tmp_path / "out")
    monkeypatch.setattr(prepare_gsm8k, "ROWS", {"train": 3, "test": 2})
    monkeypatch.setattr(prepare_gsm8k, "DEV_ROWS", 1)
    with pytest.raises(SystemExit, match="the content of train has sha256"):
        prepare_gsm8k.main(config)
    hashes = {name: prepare_gsm8k.content_sha256(prepare_gsm8k.read_split(name, source)) for name in ("train", "test")}
    monkeypatch.setattr(prepare_gsm8k, "CONTENT_SHA256", hashes)
    prepare_gsm8k.main(config)
    questions = {
        name: [problem.question for problem in load_problems(config.output / f"{name}.jsonl")]
        for name in ("train", "test", "dev", "train_full")
    }
    assert questions["train"] == ["train 0", "train 1", "train 2"]
    assert questions["test"] == ["test 0", "test 1"]
    assert len(questions["dev"]) == 1
    assert sorted(questions["dev"] + questions["train_full"]) == questions["train"]


@pytest.mark.parametrize(
    ("name", "size", "digest"),
    [
        ("r1_zero", 449, "56213732da87e12ace60a2b88a16df0af18280fb0563a957cbecc938a6a2ac0e"),
        ("question_only", 10, hashlib.sha256(b"{question}").hexdigest()),
        ("alpaca_sft", 164, "fbd4a4672e92a2ecb3a849a6417ce7be683dc02382edc11a9ce0d58a9ac9449e"),
    ],
)
def test_prompt_templates_are_the_published_ones(name, size, digest):
    content = load_template(name).encode()
    assert (len(content), hashlib.sha256(content).hexdigest()) == (size, digest)


def test_zero_shot_system_prompt_has_the_courses_format():
    prompt = fill(load_template("zero_shot_system_prompt"), instruction="Why is the sky blue?")
    pattern = r"# Instruction\n.+\n\n# Query:\n```\nWhy is the sky blue\?\n```\n\n# Answer:\n```\n"
    assert re.fullmatch(pattern, prompt, re.DOTALL)
    assert prompt.count("# Query:\n") == 1


def test_unknown_prompt_template_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"'r2'.*alpaca_sft, question_only, r1_zero, zero_shot_system_prompt"):
        load_template("r2")


@given(question=st.text("{}questionrespo \\frac", max_size=30))
def test_filling_keeps_braces(question):
    template = load_template("r1_zero")
    assert fill(template, question=question) == template.replace("{question}", question)


def test_filling_is_one_pass_and_complete():
    filled = fill(alpaca_template(), instruction="a {response} b", response="c {instruction} d")
    assert "### Instruction:\na {response} b\n" in filled
    assert filled.endswith("### Response:\nc {instruction} d")
    with pytest.raises(ValueError, match=r"\{response\}"):
        fill(alpaca_template(), instruction="x")
