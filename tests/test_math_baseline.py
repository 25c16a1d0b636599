"""The zero-shot baseline: what it evaluates on what, its errors, its run folder, and how it continues."""

import io
import json
import os
import shutil
import subprocess
import sys

import pytest
from rich.console import Console

from cs336_alignment import environment, math_baseline
from cs336_alignment.math_baseline import BaselineConfig, choose_model_and_data, run
from cs336_alignment.run_folder import UsageError
from tests.common import REPOSITORY, TINY_QWEN2, glossary
from tests.test_distributed import launch

TINY = str(TINY_QWEN2)


@pytest.fixture
def folder(tmp_path):
    """A data folder with the embedded pair (as names alone), without GSM8K."""
    for path in ("policy", "arithmetic", "gsm8k"):
        (tmp_path / path).mkdir()
    (tmp_path / "arithmetic" / "test.jsonl").touch()
    return tmp_path


def add_gsm8k(folder):
    path = folder / "gsm8k" / "test.jsonl"
    path.touch()
    return path


def test_without_anything_the_embedded_pair_stands_in_and_says_so(folder):
    model, data, note = choose_model_and_data(None, None, {}, folder)
    assert (model, data) == (str(folder / "policy"), folder / "arithmetic" / "test.jsonl")
    assert len(note.splitlines()) == 2
    assert "embedded" in note
    assert "prepare_gsm8k.py" in note
    assert "CS336_MODEL" in note


def test_an_empty_variable_names_nothing(folder):
    assert choose_model_and_data(None, None, {"CS336_MODEL": ""}, folder)[0] == str(folder / "policy")


def test_the_named_model_and_gsm8k_are_taken_when_both_are_there(folder):
    gsm8k = add_gsm8k(folder)
    assert choose_model_and_data(None, None, {"CS336_MODEL": TINY}, folder) == (TINY, gsm8k, "")


def test_options_win(folder, tmp_path):
    add_gsm8k(folder)
    data = tmp_path / "mine.jsonl"
    data.touch()
    assert choose_model_and_data(TINY, data, {"CS336_MODEL": "/nowhere"}, folder) == (TINY, data, "")


@pytest.mark.parametrize(
    ("model", "has_data", "variables", "message"),
    [
        (None, True, {}, "no model: give --model, or set CS336_MODEL"),
        (None, False, {"CS336_MODEL": TINY}, "there is no .*test.jsonl: run .*prepare_gsm8k.py"),
        (None, True, {"CS336_MODEL": "/nowhere/model"}, "CS336_MODEL is '/nowhere/model': no such directory"),
        (None, False, {"CS336_MODEL": "/nowhere/model"}, "CS336_MODEL is '/nowhere/model': no such directory"),
        ("/nowhere/model", True, {}, "--model is '/nowhere/model': no such directory"),
        (str(TINY_QWEN2.parent), True, {}, "a folder without a usable model"),
        (TINY, False, {}, r"there is no .*test\.jsonl: run .*prepare_gsm8k\.py"),
    ],
)
def test_half_of_the_real_pair_is_an_error(folder, model, has_data, variables, message):
    if has_data:
        add_gsm8k(folder)
    with pytest.raises(UsageError, match=message):
        choose_model_and_data(model, None, variables, folder)


def test_no_embedded_pair_is_an_error(tmp_path):
    with pytest.raises(UsageError, match="start from a checkout"):
        choose_model_and_data(None, None, {}, tmp_path)


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "problems.jsonl"
    rows = [{"question": f"What is {i} + {i}?", "answer": f"It is {2 * i}.\n#### {2 * i}"} for i in range(5)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def config(data, output, **changes):
    values = {
        "model": TINY,
        "data": data,
        "output": output,
        "engine": "transformers",
        "max_tokens": 6,
        "chunk_size": 2,
    }
    return BaselineConfig(**(values | changes))


def quiet():
    return Console(file=io.StringIO())


def test_a_run_leaves_a_complete_folder(data, tmp_path):
    output = run(config(data, tmp_path / "run"), quiet())
    for name in ("run.json", "metrics.jsonl", "completions/examples.jsonl", "summary.json", "report.md", "lengths.png"):
        assert (output / name).stat().st_size > 0
    record = json.loads((output / "run.json").read_text())
    assert record["config"]["max_tokens"] == 6
    assert record["protocol"]["n_problems"] == 5
    assert record["protocol"]["sampling"]["stop"] == ["</answer>"]
    assert record["protocol"]["engine"]["engine"].startswith("transformers ")
    assert {"commit", "packages", "hardware", "python"} <= set(record["sessions"][0])
    summary = json.loads((output / "summary.json").read_text())
    assert summary["n"] == 5
    chunk = json.loads((output / "metrics.jsonl").read_text().splitlines()[0])
    assert {*summary, *summary["categories"], *chunk} <= glossary()


def test_what_is_said_to_the_user_is_not_wrapped(monkeypatch, capsys):
    """A command that a terminal of 80 columns cuts in two is no command any more."""
    command = "uv pip install " + "--and-so-on " * 20 + "-e ."

    def too_old():
        raise environment.DriverTooOldError(f"the driver is too old; run\n    {command}")

    monkeypatch.setattr(environment, "check_cuda_driver", too_old)
    monkeypatch.setattr(sys, "argv", ["math_baseline"])
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as ended:
        math_baseline.main()
    assert ended.value.code == 2
    assert f"    {command}" in capsys.readouterr().err.splitlines()


def test_the_note_has_two_lines_on_the_terminal(folder, monkeypatch):
    monkeypatch.setattr(math_baseline, "data_folder", lambda: folder)
    monkeypatch.delenv("CS336_MODEL", raising=False)
    terminal = io.StringIO()
    with pytest.raises(UsageError, match="holds no problems"):
        run(BaselineConfig(), Console(file=terminal, width=80))
    assert len(terminal.getvalue().splitlines()) == 2


def test_a_run_resumes_to_the_same_examples(data, tmp_path):
    whole, cut = (run(config(data, tmp_path / name), quiet()) / "completions/examples.jsonl" for name in ("a", "b"))
    expected = whole.read_text()
    cut.write_text("".join(expected.splitlines(keepends=True)[:3]))
    run(config(data, tmp_path / "b", resume=True), quiet())
    assert cut.read_text() == expected
    assert len(json.loads((tmp_path / "b" / "run.json").read_text())["sessions"]) == 2


def test_resume_needs_the_same_protocol_and_a_run_to_continue(data, tmp_path):
    run(config(data, tmp_path / "run"), quiet())
    with pytest.raises(UsageError, match="continue it with --resume"):
        run(config(data, tmp_path / "run"), quiet())
    with pytest.raises(UsageError, match="started with another sampling"):
        run(config(data, tmp_path / "run", resume=True, temperature=0.5), quiet())
    with pytest.raises(UsageError, match="nothing to resume"):
        run(config(data, tmp_path / "other", resume=True), quiet())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"limit": 0}, "--limit must be at least 1"),
        ({"chunk_size": 0}, "--chunk-size must be at least 1"),
        ({"temperature": -1.0}, "temperature must not be negative"),
        ({"min_tokens": 9}, "min_tokens must be between"),
    ],
)
def test_bad_options_are_named_before_a_model_is_loaded(data, tmp_path, changes, message, monkeypatch):
    monkeypatch.setattr(math_baseline, "open_engine", None)
    with pytest.raises(UsageError, match=message):
        run(config(data, tmp_path / "run", **changes), quiet())
    assert not (tmp_path / "run").exists()


def test_a_start_that_failed_leaves_its_folder_free(data, tmp_path):
    output = tmp_path / "run"
    output.mkdir()
    (output / "run.json").write_text('{"protocol": {"model": "another"}}')
    run(config(data, output), quiet())
    with pytest.raises(UsageError, match="already holds a run"):
        run(config(data, output), quiet())


@pytest.mark.parametrize(
    ("content", "message"), [("", "holds no problems"), ("{}\n", "line 1: no text field 'answer'")]
)
def test_bad_data_is_named(data, tmp_path, content, message):
    data.write_text(content)
    with pytest.raises(UsageError, match=message):
        run(config(data, tmp_path / "run"), quiet())


def command(*arguments, folder, **variables):
    environment = {name: value for name, value in os.environ.items() if name != "CS336_MODEL"}
    return subprocess.run(
        [sys.executable, "-m", "cs336_alignment.math_baseline", *arguments],
        cwd=folder,
        env=environment | {"PYTHONPATH": str(REPOSITORY)} | variables,
        capture_output=True,
        text=True,
    )


def test_the_command_line_reports_errors_in_a_line_and_exit_code_2(tmp_path):
    finished = command("--engine", "transformers", folder=tmp_path, CS336_MODEL=str(tmp_path / "missing"))
    assert finished.returncode == 2
    assert "error: CS336_MODEL is" in finished.stderr
    assert "Traceback" not in finished.stderr


@pytest.mark.slow
def test_the_command_without_options_evaluates_the_embedded_policy(tmp_path):
    # In a copy of the project without GSM8K, so that nothing real is prepared there.
    for name in ("cs336_alignment", "data/arithmetic", "data/policy"):
        shutil.copytree(REPOSITORY / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    finished = command("--limit", "64", "--engine", "transformers", folder=tmp_path, PYTHONPATH=str(tmp_path))
    assert finished.returncode == 0, finished.stderr
    [output] = (tmp_path / "runs").iterdir()
    summary = json.loads((output / "summary.json").read_text())
    assert summary["n"] == 64
    assert summary["format_rate"] > 0.2
    assert "embedded arithmetic set" in finished.stderr
    assert "accuracy" in finished.stdout


@pytest.mark.slow
def test_ranks_share_a_baseline_out_and_draw_what_one_process_does(tmp_path):
    options = "-m cs336_alignment.math_baseline --model data/policy --data data/arithmetic/dev.jsonl --limit 21"
    options = f"{options} --max-tokens 40 --chunk-size 8 --engine transformers --output".split()
    launch([*options, str(tmp_path / "two")])
    subprocess.run([sys.executable, *options, str(tmp_path / "one")], cwd=REPOSITORY, check=True, capture_output=True)
    one, two = (
        [json.loads(line) for line in (tmp_path / name / "completions/examples.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    )
    assert [row["index"] for row in two] == list(range(21))
    for name in ("token_ids", "reward", "gold"):
        assert [row[name] for row in two] == [row[name] for row in one]
    assert json.loads((tmp_path / "two" / "summary.json").read_text())["n"] == 21
    # Interrupted after its first chunk, and continued by one process alone.
    lines = (tmp_path / "two" / "completions/examples.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "two" / "completions/examples.jsonl").write_text("".join(lines[:11]))
    subprocess.run([sys.executable, *options, str(tmp_path / "two"), "--resume"], cwd=REPOSITORY, check=True)
    assert (tmp_path / "two" / "completions/examples.jsonl").read_text() == "".join(lines)
