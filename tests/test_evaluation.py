"""Evaluation, its summary, its report, and logging of generations, on an engine of ten lines."""

import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, ClassVar, cast

import pytest

from cs336_alignment.evaluation import (
    EXAMPLES,
    METRICS,
    EvaluationProtocol,
    GradedExample,
    check_prompts,
    evaluate,
    generation_seconds,
    grader_of,
    log_generations,
    summarize,
    wilson_interval,
)
from cs336_alignment.evaluation import answer as answer_all
from cs336_alignment.evaluation_report import write_report
from cs336_alignment.grading import grade_r1_zero
from cs336_alignment.prompts import fill, load_template
from cs336_alignment.ranks import Ranks
from cs336_alignment.rollout.engine import Completion, Sampling
from cs336_alignment.run_folder import UsageError, read_complete_json_lines, write_atomically
from cs336_alignment.tasks.problem import Problem

TEMPLATE = load_template("r1_zero")
SAMPLING = Sampling(max_tokens=20)


class FakeEngine:
    """Answers the question "say X" with X; keeps the seed and the place of each draw."""

    description: ClassVar[dict[str, str | int]] = {"engine": "fake 1", "dtype": "float32"}

    def __init__(self):
        self.seeds = []

    def generate(self, prompts, sampling):
        self.seeds += [(sampling.seed, sampling.first_position + place) for place in range(len(prompts))]
        texts = [prompt.split("say ", 1)[1].split("\nAssistant:")[0] for prompt in prompts]
        return [[Completion(text, tuple(map(ord, text)), (-1.0,) * len(text), "stop")] for text in texts]


def answer(text):
    return f"so </think> <answer>{text}</answer>"


def problems(*responses_and_golds):
    return [Problem(f"say {response}", gold) for response, gold in responses_and_golds]


# The third has a line separator in it, which JSON leaves as it is: it must not end a line of the file.
FIVE = problems((answer("1"), "1"), (answer("2"), "3"), ("4\u2028", "4"), (answer("five"), "5"), (answer("6"), "6"))


def run(folder, engine: Any = None, asked=FIVE, chunk_size=2):
    engine = engine or FakeEngine()
    return evaluate(engine, grade_r1_zero, asked, TEMPLATE, SAMPLING, folder, chunk_size)


def test_evaluate_grades_each_problem(tmp_path):
    examples = run(tmp_path)
    assert [example.category for example in examples] == ["type1", "type2", "type3", "type2", "type1"]
    assert [example.semantic_reward for example in examples] == [1, 0, 0, 1, 1]
    assert [example.parsed_answer for example in examples] == ["1", "2", None, "five", "6"]
    assert examples[0].prompt == fill(TEMPLATE, question=FIVE[0].question)
    assert examples[0].token_ids == tuple(map(ord, answer("1")))
    assert examples[0].length == len(answer("1"))
    rows = read_complete_json_lines(tmp_path / EXAMPLES)
    assert [row["index"] for row in rows] == [0, 1, 2, 3, 4]
    assert rows == json.loads(json.dumps([asdict(example) for example in examples]))


def test_evaluate_takes_a_reward_function_as_a_grader(tmp_path):
    def reward_fn(response, gold):
        return {"format_reward": 1.0, "answer_reward": float(gold in response), "reward": float(gold in response)}

    asked = problems(("four is 4", "4"), ("five", "5"))
    engine: Any = FakeEngine()
    graded = evaluate(engine, grader_of(reward_fn), asked, TEMPLATE, SAMPLING, tmp_path)
    assert [(row.reward, row.semantic_reward, row.parsed_answer) for row in graded] == [(1, 1, None), (0, 0, None)]


@pytest.mark.parametrize("chunk_size", [64, 256, 300])
def test_every_problem_has_a_draw_of_its_own_whatever_the_chunks(tmp_path, chunk_size):
    asked = problems(*[(answer(str(number)), "0") for number in range(600)])
    engine, whole = FakeEngine(), FakeEngine()
    run(tmp_path / "chunks", engine, asked, chunk_size)
    assert len(set(engine.seeds)) == 600
    run(tmp_path / "whole", whole, asked, 128)
    assert engine.seeds == whole.seeds


@pytest.mark.parametrize("lines_left", [0, 1, 2, 3, 4])
def test_an_interrupted_evaluation_continues(tmp_path, lines_left):
    # Cut the file after some lines and half of another, as a kill would; whole chunks of two stay, the rest is redone.
    whole, engine = FakeEngine(), FakeEngine()
    expected = run(tmp_path / "whole", whole)
    run(tmp_path / "cut")
    lines = (tmp_path / "cut" / EXAMPLES).read_text().split("\n")
    (tmp_path / "cut" / EXAMPLES).write_text("\n".join([*lines[:lines_left], lines[lines_left][:30]]))
    assert run(tmp_path / "cut", engine) == expected
    assert engine.seeds == whole.seeds[lines_left // 2 * 2 :]
    for name in (EXAMPLES, METRICS):
        rows = [read_complete_json_lines(tmp_path / folder / name) for folder in ("whole", "cut")]
        for row in rows[0] + rows[1]:
            row.pop("generation_seconds", None)
        assert rows[0] == rows[1]


def test_a_kill_between_the_two_files_loses_nothing(tmp_path):
    whole, engine = run(tmp_path), FakeEngine()
    path = tmp_path / EXAMPLES
    path.write_text("\n".join(path.read_text().split("\n")[:2]) + "\n")  # the metrics know of all three chunks
    assert run(tmp_path, engine) == whole
    assert len(engine.seeds) == 3  # two chunks of the three, which the fifth problem ends
    assert [row["chunk_start"] for row in read_complete_json_lines(tmp_path / METRICS)] == [0, 2, 4]


@pytest.mark.parametrize("left", ["whole", "cut short"])
def test_a_kill_in_the_first_chunk_leaves_no_metrics_behind(tmp_path, left):
    whole = run(tmp_path)
    first = (tmp_path / METRICS).read_text().split("\n")[0] + "\n"
    (tmp_path / METRICS).write_text(first if left == "whole" else first[:20])
    (tmp_path / EXAMPLES).unlink()
    assert run(tmp_path) == whole
    assert [row["chunk_start"] for row in read_complete_json_lines(tmp_path / METRICS)] == [0, 2, 4]
    assert generation_seconds(tmp_path) > 0


@pytest.mark.parametrize("chunk_size", [0, -1])
def test_evaluate_refuses_empty_chunks(tmp_path, chunk_size):
    with pytest.raises(ValueError, match="chunk_size"):
        run(tmp_path, chunk_size=chunk_size)


def test_a_finished_evaluation_generates_nothing_more(tmp_path):
    expected, engine = run(tmp_path), FakeEngine()
    assert run(tmp_path, engine) == expected
    assert engine.seeds == []


def test_evaluate_refuses_a_folder_of_other_problems(tmp_path):
    run(tmp_path)
    with pytest.raises(ValueError, match="example 0 answers another prompt"):
        run(tmp_path, asked=FIVE[::-1])


def test_evaluate_takes_one_completion_a_problem(tmp_path):
    with pytest.raises(ValueError, match="got n = 2"):
        evaluate(cast(Any, FakeEngine()), grade_r1_zero, FIVE, TEMPLATE, replace(SAMPLING, n=2), tmp_path)


def example(length, reward, **changes):
    values = {
        "index": 0,
        "prompt": "p",
        "response": "r",
        "token_ids": (1,) * length,
        "gold": "1",
        "parsed_answer": "1",
        "format_reward": 1.0,
        "answer_reward": reward,
        "reward": reward,
        "semantic_reward": reward,
        "undecided": False,
        "length": length,
        "finish_reason": "stop",
    }
    return GradedExample(**(values | changes))


def test_summarize_by_hand():
    examples = [
        example(10, 1.0),
        example(20, 0.0, semantic_reward=1.0),
        example(40, 0.0, format_reward=0.0, finish_reason="length", undecided=True),
        example(30, 1.0),
    ]
    summary = summarize(examples, generation_seconds=2.0)
    assert summary["n"] == 4
    assert summary["accuracy"] == 0.5
    assert summary["accuracy_semantic"] == 0.75
    assert summary["verdicts_differ"] == 1
    assert summary["undecided"] == 1
    assert summary["format_rate"] == 0.75
    assert summary["categories"] == {"type1": 2, "type2": 1, "type3": 1}
    assert summary["truncation_rate"] == 0.25
    assert summary["mean_length"] == 25
    assert summary["mean_length_correct"] == 20
    assert summary["mean_length_incorrect"] == 30
    assert summary["examples_per_second"] == 2
    assert summary["tokens_per_second"] == 50


def test_summarize_when_all_are_wrong_and_when_there_are_none():
    summary = summarize([example(3, 0.0)], 1.0)
    assert summary["mean_length_correct"] is None
    with pytest.raises(ValueError, match="no examples"):
        summarize([], 1.0)


def test_wilson_interval_by_hand():
    # 8 of 10: centre (0.8 + 3.8415/20) / 1.38415 = 0.71674, half width 1.95996 sqrt(0.016 + 0.0096036) / 1.38415
    low, high = wilson_interval(8, 10)
    centre = (0.8 + 3.841459 / 20) / 1.3841459
    half = 1.959964 * math.sqrt(0.8 * 0.2 / 10 + 3.841459 / 400) / 1.3841459
    assert low == pytest.approx(centre - half, rel=1e-6)
    assert high == pytest.approx(centre + half, rel=1e-6)
    assert low == pytest.approx(0.4902, abs=1e-4)
    assert high == pytest.approx(0.9433, abs=1e-4)
    assert wilson_interval(0, 10)[0] == 0
    assert wilson_interval(10, 10)[1] == pytest.approx(1)


def test_report_shows_figures_protocol_disagreements_and_samples(tmp_path):
    asked = FIVE + problems(*[(answer("7"), "8")] * 12, *[("no tags ```", "9")] * 12)
    examples = run(tmp_path, asked=asked, chunk_size=8)
    protocol = EvaluationProtocol(
        "tiny", "five.jsonl", "0" * 64, len(asked), "r1_zero", "1" * 64, SAMPLING, 8, FakeEngine.description
    )
    report = write_report(tmp_path, protocol, examples, summarize(examples, generation_seconds(tmp_path)))
    text = report.read_text()
    assert "| accuracy (course-compatible) | 6.90%, 95% interval 1.91% to 21.96% |" in text
    assert "| type3: unformatted | 13 |" in text
    assert "## Where the two verdicts differ (1)" in text
    assert "| 3 | five | 5 | 0.0 | 1.0 |" in text
    assert "## Formatted but wrong (type2): 10 of 14" in text
    assert "## Unformatted (type3): 10 of 13" in text
    assert text.count("gold 9, parsed None") == 9
    assert "engine fake 1, dtype float32" in text
    assert "````text" in text  # a response with backticks stays inside its fence
    assert (tmp_path / "lengths.png").read_bytes().startswith(b"\x89PNG")


def test_log_generations(model, tokenizer):
    # The policy's entropy on each response token, against a plain loop in float64.
    class Engine:
        def generate(self, prompts, sampling):
            texts = [answer("1"), "no"]
            ids = [tuple(tokenizer(text)["input_ids"]) for text in texts]
            return [[Completion(text, i, (-1.0,) * len(i), "stop")] for text, i in zip(texts, ids, strict=True)]

    import torch

    from tests import references

    asked = [Problem("one?", "1"), Problem("two?", "2")]
    logged, means = log_generations(cast(Any, Engine()), model, tokenizer, asked, TEMPLATE, grade_r1_zero, SAMPLING)
    for row, problem in zip(logged, asked, strict=True):
        prompt_ids = tokenizer(fill(TEMPLATE, question=problem.question))["input_ids"]
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt_ids, *row.example.token_ids]])).logits[0, len(prompt_ids) - 1 : -1]
        expected = references.entropy(logits.double().numpy()).mean()
        assert row.mean_token_entropy == pytest.approx(expected, rel=1e-5)
    assert [row.example.reward for row in logged] == [1, 0]
    assert means["reward"] == 0.5
    assert means["entropy"] == pytest.approx(sum(row.mean_token_entropy for row in logged) / 2)
    lengths = [row.example.length for row in logged]
    assert means["length"] == sum(lengths) / 2
    assert (means["length_correct"], means["length_incorrect"]) == tuple(lengths)


def test_write_atomically_leaves_the_old_file_when_it_fails(tmp_path, monkeypatch):
    path = tmp_path / "folder" / "file.txt"
    write_atomically(path, "old")
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, "new")
    assert path.read_text() == "old"


def test_prompts_that_leave_no_room_are_found_where_the_data_are_read(tokenizer):
    """Token counts by hand: a byte a token where no merge applies."""
    asked = problems(("short", "1"), ("0" * 40, "1"), ("fits", "1"), ("1" * 50, "1"))
    lengths = [len(tokenizer(f"{TEMPLATE}".replace("{question}", problem.question))["input_ids"]) for problem in asked]
    check_prompts(Path("some.jsonl"), asked, TEMPLATE, tokenizer, max(lengths) + 1)
    expected = rf"some\.jsonl, line 2, and 1 further lines: the prompt has {lengths[1]} tokens, the model {lengths[1]}"
    with pytest.raises(UsageError, match=expected):
        check_prompts(Path("some.jsonl"), asked, TEMPLATE, tokenizer, lengths[1])


class OneOfFour(Ranks):
    """A rank that sees its own part alone."""

    def __init__(self, index, tensor_parallel_size):
        self.index, self.count, self.tensor_parallel_size = index, 4, tensor_parallel_size

    def gather(self, items):
        return list(items)


@pytest.mark.parametrize("tensor_parallel_size", [1, 2, 4])
@pytest.mark.parametrize("block", [None, 3])
def test_ranks_share_out_what_one_process_draws(tensor_parallel_size, block):
    asked = problems(*[(answer(str(number)), "0") for number in range(11)])

    def answers(ranks):
        engine: Any = FakeEngine()
        graded, _ = answer_all(engine, grade_r1_zero, asked, TEMPLATE, SAMPLING, ranks, first_index=5, block=block)
        return engine.seeds, graded

    seeds, whole = answers(Ranks())
    parts = [answers(OneOfFour(index, tensor_parallel_size)) for index in range(4)]
    # The ranks of a group ask for the same; the groups together for what one process does, and each grades its part.
    groups = [parts[start : start + tensor_parallel_size] for start in range(0, 4, tensor_parallel_size)]
    assert all(len({tuple(seeds) for seeds, _ in group}) == 1 for group in groups)
    assert [seed for group in groups for seed in group[0][0]] == seeds
    assert [example for _, graded in parts for example in graded] == whole
