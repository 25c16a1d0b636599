"""The training commands as a user runs them: what they write, how they resume, and what they say to bad input."""

import importlib.util
import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from time import monotonic
from types import SimpleNamespace
from typing import Any, cast

import pytest
from transformers import AutoTokenizer

from cs336_alignment.command_line import FAILED, STOPPED
from cs336_alignment.evaluation import GRADERS
from cs336_alignment.prompts import load_template
from cs336_alignment.ranks import Ranks
from cs336_alignment.run_folder import UsageError, lock_folder
from cs336_alignment.tasks.problem import Problem
from cs336_alignment.training.grpo import GRPOConfig, run_grpo
from cs336_alignment.training.interruption import Interruption
from cs336_alignment.training.packing import TokenExample
from cs336_alignment.training.session import RunConfig, Session
from cs336_alignment.training.targets import check_lengths, rationale_traces, sft_targets
from tests.common import REPOSITORY, glossary
from tests.test_distributed import ACCELERATE, launch

POLICY = REPOSITORY / "data" / "policy"
TINY = (
    "--model data/policy --train-data data/arithmetic/train.jsonl --eval-data data/arithmetic/dev.jsonl "
    "--eval-limit 8 --max-tokens 40 --token-budget 512 --engine transformers --wandb disabled"
)
GRPO = "--rollout-batch-size 16 --train-batch-size 16 --group-size 4"


def run(script, options, **environment):
    return subprocess.run(
        [sys.executable, f"scripts/{script}", *options.split()],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
    )


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_grpo_writes_a_whole_run_folder(tmp_path):
    folder = tmp_path / "run"
    every_metric = "--kl-coef 0.1 --importance-cap 2 --loss-type grpo_clip --train-batch-size 8"
    options = f"{TINY} {GRPO} {every_metric} --eval-every 2 --output {folder}"
    finished = run("train_grpo.py", f"{options} --n-grpo-steps 2")
    assert finished.returncode == 0, finished.stderr
    assert [(row["kind"], row["step"]) for row in rows(folder)] == [
        ("eval", 0),
        ("train", 1),
        ("train", 2),
        ("eval", 2),
    ]
    logged = rows(folder)[1]
    for name in ("reward", "format_reward", "answer_reward", "loss", "grad_norm", "entropy", "mean_length"):
        assert name in logged
    assert "reference_kl" in logged
    for row in rows(folder):
        assert {*row, *row["timing"]} - {"kind", "step", "timing"} <= glossary()
    record = json.loads((folder / "run.json").read_text())
    assert record["config"]["n_grpo_steps"] == 2
    assert record["sessions"][0]["packages"]["torch"]
    names = {path.name for path in (folder / "checkpoints" / "step_2").iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "optimizer.pt", "progress.json"} <= names
    completions = {path.name for path in (folder / "completions").iterdir()}
    assert completions == {"eval_step_0.jsonl", "eval_step_2.jsonl", "rollouts_step_1.jsonl"}

    again = run("train_grpo.py", f"{options} --n-grpo-steps 2")
    assert again.returncode == 2
    assert "--resume auto" in again.stderr
    other = run("train_grpo.py", f"{options} --n-grpo-steps 3 --resume auto")
    assert other.returncode == 2
    assert "started with another n_grpo_steps" in other.stderr
    assert len(rows(folder)) == 4


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_bits(tmp_path):
    """One kill at a random moment; CI has a step of its own with more, and the other two algorithms."""
    finished = run("check_resume.py", f"--algorithm grpo --kills 1 --output {tmp_path}")
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert json.loads((tmp_path / "resume.json").read_text())["differing"] == []


# As the README gives it: what the launcher passes on to its ranks, and how long it then waits for them.
PATIENT_LAUNCHER = {"PET_SIGNALS_TO_HANDLE": "SIGTERM,SIGINT,SIGUSR1", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "900"}


def signalled_after(start, number, command):
    """Run a command, send it a signal at the first line that starts so; what it said afterwards, and its status."""
    process = subprocess.Popen(
        command,
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1", **PATIENT_LAUNCHER},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith(start):
            process.send_signal(number)
            break
    return process.stderr.read(), process.wait()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "status"),
    [
        ("", STOPPED),
        ("scripts/launch.py --standalone --nproc-per-node 2", STOPPED),
        (f"-m {ACCELERATE}", FAILED),
    ],
    ids=["one process", "two ranks", "two ranks of accelerate"],
)
def test_a_signal_ends_in_a_checkpoint(tmp_path, launcher, status):
    """And in the exit status for it, but with accelerate, whose own status says that it was told to stop."""
    command = [sys.executable, *launcher.split(), "scripts/train_grpo.py"]
    options = f"{TINY} {GRPO} --n-grpo-steps 500 --output {tmp_path}".split()
    rest, ended = signalled_after("train 2", signal.SIGUSR1, [*command, *options])
    assert ended == status
    assert "(SIGUSR1)" in rest
    last = rows(tmp_path)[-1]["step"]
    assert (tmp_path / "checkpoints" / f"step_{last}" / "progress.json").exists()


@pytest.mark.slow
def test_a_signal_in_expert_iteration_leaves_the_last_whole_round(tmp_path):
    options = f"{TINY} --n-ei-steps 50 --questions-per-step 64 --batch-size 4 --output {tmp_path}".split()
    command = [sys.executable, "scripts/train_expert_iteration.py", *options]
    rest, ended = signalled_after("eval 1", signal.SIGTERM, command)
    assert ended == STOPPED
    assert "(SIGTERM)" in rest
    last = max(row["step"] for row in rows(tmp_path) if row["kind"] == "train")
    assert (tmp_path / "checkpoints" / f"step_{last}" / "progress.json").exists()


@pytest.mark.slow
def test_accelerate_that_would_start_one_process_of_two_is_refused():
    launcher = ACCELERATE.replace("--multi_gpu ", "").replace("--main_process_port 0", "")
    command = [sys.executable, "-m", *launcher.split(), "scripts/train_grpo.py", *TINY.split()]
    finished = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert finished.returncode != 0
    assert "--multi_gpu --num_processes N" in finished.stderr


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["replicas", "fsdp2"])
def test_grpo_on_two_ranks(tmp_path, sharding):
    """End to end: rollouts, grading and gradients shared out, and the rewards those of one rank."""
    bigger = "--max-tokens 100 --rollout-batch-size 64 --train-batch-size 64 --group-size 8 --token-budget 256"
    options = f"{TINY} {bigger} --n-grpo-steps 2 --eval-every 2".split()
    launch(["scripts/train_grpo.py", *options, "--sharding", sharding, "--output", str(tmp_path / "two")], ACCELERATE)
    assert run("train_grpo.py", " ".join([*options, "--output", str(tmp_path / "one")])).returncode == 0
    one, two = rows(tmp_path / "one"), rows(tmp_path / "two")
    assert [(row["kind"], row["step"]) for row in one] == [(row["kind"], row["step"]) for row in two]
    # The first step's rollouts come from the same weights and the same draws.
    assert one[1]["sequences_run"] >= 8  # of these some on each rank
    for name in ("reward", "mean_length", "sequences_run", "loss", "grad_norm", "entropy"):
        assert two[1][name] == pytest.approx(one[1][name], rel=1e-4), name
    assert json.loads((tmp_path / "two" / "run.json").read_text())["sessions"][0]["ranks"] == 2


@pytest.mark.parametrize(
    ("script", "options", "message"),
    [
        ("train_grpo.py", "--train-data nowhere.jsonl", "--train-data: there is no nowhere.jsonl"),
        ("train_grpo.py", "--rollout-batch-size 255", "multiple of group_size"),
        # No name that the hub could have: nothing here waits for a network.
        ("train_sft.py", "--model no/such/folder", "hub name that can be used: 'no/such/folder'"),
        ("train_grpo.py", "--model no/such/folder --dry-run", "hub name that can be used: 'no/such/folder'"),
        ("train_expert_iteration.py", "--rollouts-per-question 0", "rollouts_per_question must be at least 1"),
        ("train_sft.py", "--filter-correct", "--filter-correct needs --data"),
        ("train_sft.py", "--unique-examples 7000", "there are 6,000 to choose from"),
        ("train_expert_iteration.py", "--temperature 0", "temperature must be positive"),
        ("train_grpo.py", "--resume auto", "resume auto needs output"),
        ("train_grpo.py", "--train-batch-size 0", "train_batch_size must be at least 1, got 0"),
        ("train_grpo.py", "--importance-cap -1", "importance_cap must be positive, got -1.0"),
        ("train_grpo.py", "--kl-coef -0.1", "kl_coef must not be negative"),
        ("train_sft.py", "--seed -1", "seed must not be negative"),
        ("train_sft.py", "--betas 0.9 1.0", "betas must be at least 0 and below 1"),
        ("train_sft.py", "--threads 0", "threads must be at least 1"),
        ("train_sft.py", "--learning-rate nan", "learning_rate must be positive, got nan"),
        ("train_grpo.py", "--max-grad-norm inf", "--max-grad-norm must be a number of ordinary size, got inf"),
        ("train_grpo.py", "--seed 12345678901234567890", "--seed must be a number of ordinary size"),
        ("train_grpo.py", "--betas 0.9 nan", "betas must be at least 0"),
        ("train_grpo.py", "--time-limit-minutes -1", "time_limit_minutes must be positive"),
        ("train_grpo.py", "--output README.md", "--output: README.md cannot be written to: File exists"),
        ("train_grpo.py", "--output .", "--output names no folder, but the one that the command was started in"),
    ],
)
def test_bad_options_end_in_one_line(script, options, message, monkeypatch, capsys):
    """The script itself, in this process: a new one takes seconds to import torch."""
    given = TINY.replace("--train-data data/arithmetic/train.jsonl", "") if "--train-data" in options else TINY
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr(sys, "argv", [script, *f"{given} {options}".split()])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(f"scripts/{script}", run_name="__main__")
    assert ended.value.code == 2
    # tyro puts its errors into a box, and wraps them.
    assert message in " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_a_folder_that_holds_a_run_is_left_alone(tmp_path, monkeypatch):
    """Found before anything is loaded: this model could not be, for its weights are missing."""
    monkeypatch.chdir(REPOSITORY)
    shutil.copytree(POLICY, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors"))
    options = GRPOConfig(
        run=RunConfig(
            str(tmp_path / "model"),
            Path("data/arithmetic/train.jsonl"),
            Path("data/arithmetic/dev.jsonl"),
            output=tmp_path,
        )
    )
    (tmp_path / "checkpoints/step_3").mkdir(parents=True)
    with pytest.raises(UsageError, match="already holds a run: go on with --resume auto"):
        run_grpo(options)
    with lock_folder(tmp_path), pytest.raises(UsageError, match=rf"another process \({os.getpid()} on .*\) works on"):
        run_grpo(replace(options, run=replace(options.run, resume="auto")))
    (tmp_path / "run.json").write_text(json.dumps({"config": {"run": {"model": "another"}}}))
    with pytest.raises(UsageError, match=r"started with another .*run\.model"):
        run_grpo(replace(options, run=replace(options.run, resume="auto")))


TOKENIZER = AutoTokenizer.from_pretrained(POLICY)


def test_a_trace_that_was_cut_off_does_not_end_in_eos(tmp_path):
    rows = [{"prompt": "p", "response": "ab", "finish_reason": reason} for reason in ("stop", "length")]
    (tmp_path / "traces.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    whole, cut = targets(data=tmp_path / "traces.jsonl")
    assert whole.response_ids == (*cut.response_ids, TOKENIZER.eos_token_id)


def targets(**options):
    defaults = {"data": None, "problems": None, "filter_correct": False, "unique_examples": None, "append_eos": True}
    return sft_targets(TOKENIZER, "r1_zero", seed=0, **{**defaults, **options})


def test_rationales_become_what_the_grader_wants():
    problem = Problem("2 pens and 3 pens?", "5", "2 + 3 = 5 pens.")
    (trace,) = rationale_traces([problem], load_template("r1_zero"))
    prompt, response = trace.prompt, trace.response
    assert prompt.endswith("User: 2 pens and 3 pens?\nAssistant: <think>")
    assert response == " 2 + 3 = 5 pens. </think> <answer> 5 </answer>"
    assert GRADERS["r1_zero"](response, "5", True).rewards["reward"] == 1.0
    (example,) = targets(problems=[problem])
    assert example.response_ids[-1] == TOKENIZER.eos_token_id
    assert TOKENIZER.decode(example.prompt_ids) == prompt
    assert TOKENIZER.decode(example.response_ids[:-1]) == response
    (without,) = targets(problems=[problem], append_eos=False)
    assert without.response_ids == example.response_ids[:-1]


def test_traces_are_filtered_by_their_answers(tmp_path):
    path = tmp_path / "traces.jsonl"
    texts = [f" </think> <answer> {number} </answer>" for number in (5, 6, 5)]
    lines = [{"prompt": "p", "response": text, "ground_truth": "5"} for text in texts]
    path.write_text("\n".join(json.dumps(line) for line in lines))
    assert len(targets(data=path)) == 3
    assert len(targets(data=path, filter_correct=True)) == 2
    assert len(targets(data=path, filter_correct=True, unique_examples=1)) == 1
    path.write_text(json.dumps({"prompt": "p", "response": texts[0]}))
    with pytest.raises(UsageError, match=r"trace 1 of .* has no ground_truth"):
        targets(data=path, filter_correct=True)
    path.write_text(json.dumps({"prompt": "p", "response": ""}))
    with pytest.raises(UsageError, match=r"--data: .*traces\.jsonl, line 1"):
        targets(data=path)


def test_unique_examples_are_a_seeded_subset():
    problems = [Problem(f"q{number}", "1", "r") for number in range(20)]
    chosen = targets(problems=problems, unique_examples=5)
    assert len(set(chosen)) == 5
    assert chosen == targets(problems=problems, unique_examples=5)
    assert set(chosen) <= set(targets(problems=problems))


def test_targets_longer_than_the_model_are_counted_and_named():
    examples = [TokenExample((1,) * 5, (2,) * length) for length in (3, 4, 9)]
    check_lengths(examples, 14)
    with pytest.raises(UsageError, match=r"2 of 3 examples .* 8 positions, the first of them number 2 with 9 tokens"):
        check_lengths(examples, 8)


def test_an_interruption_is_noted_and_a_time_limit_kept():
    interruption = Interruption(Ranks(), monotonic())
    assert interruption.reason() is None
    os.kill(os.getpid(), signal.SIGTERM)
    assert interruption.reason() == interruption.signalled() == "SIGTERM"
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_ctrl_c_and_a_closed_terminal_end_in_a_checkpoint(number):
    before = signal.getsignal(number)
    interruption = Interruption(Ranks(), monotonic())
    os.kill(os.getpid(), number)
    assert interruption.reason() == number.name
    interruption.restore()
    assert signal.getsignal(number) == before


def test_a_second_ctrl_c_ends_at_once():
    interruption = Interruption(Ranks(), monotonic())
    os.kill(os.getpid(), signal.SIGINT)
    assert interruption.signalled() == "SIGINT"
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    interruption.restore()


def test_a_run_ends_before_a_step_that_would_end_after_the_time_limit(monkeypatch):
    # Steps of 60 and 40 s, 130 s in all: at 60 another 60 are at hand, at 100 they are not.
    clock = iter([0.0, 60.0, 100.0])
    monkeypatch.setattr("cs336_alignment.training.interruption.monotonic", lambda: next(clock))
    interruption = Interruption(Ranks(), began=0.0, time_limit_minutes=130 / 60)
    assert interruption.reason() is None
    assert interruption.reason() == "time limit"
    interruption.restore()


@pytest.mark.parametrize(("saved", "stops"), [(4, True), (3, False)])
def test_a_round_is_cut_short_only_where_no_other_goes_with_it(saved, stops):
    """In round 5: with a checkpoint of round 4 it alone is lost; without one the round ends first, and is saved."""
    session = Session.__new__(Session)
    said = []
    session.folder = Path("run")
    session.record = cast(Any, SimpleNamespace(warn=said.append))
    session._saved_step = saved
    session._interruption = Interruption(Ranks(), monotonic())
    assert not session.cut_short(5)
    os.kill(os.getpid(), signal.SIGUSR1)
    assert session.cut_short(5) == stops
    session._interruption.restore()
    assert ["within step 5" in line and "SIGUSR1" in line for line in said] == [True] * stops


@pytest.mark.parametrize("error", [ValueError("broken"), None, SystemExit(75)])
def test_peers_are_told_of_a_failure_before_anything_is_closed(error, monkeypatch):
    """Closing an engine of several ranks waits for them, and they for this one."""
    session, done = Session.__new__(Session), []
    session._interruption = cast(Any, SimpleNamespace(restore=lambda: done.append("restore")))
    stack = ExitStack()
    stack.push(lambda kind, *_: done.append(kind))
    session._stack = stack
    monkeypatch.setattr("cs336_alignment.training.session.tell_peers", lambda error: done.append("tell"))
    kind = None if error is None else type(error)
    session.__exit__(kind, error, None)
    assert done == [*(["tell"] if kind is ValueError else []), "restore", kind]


def test_the_resume_check_notices_a_difference(tmp_path):
    """Of a weight, a counter, or a metric; not of timing."""
    spec = importlib.util.spec_from_file_location("check_resume", REPOSITORY / "scripts" / "check_resume.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)

    def digest(loss: float, seconds: float, weights: bytes) -> dict[str, str]:
        step = tmp_path / "checkpoints" / "step_1"
        step.mkdir(parents=True, exist_ok=True)
        (tmp_path / "completions").mkdir(exist_ok=True)
        (step / "model.safetensors").write_bytes(weights)
        (step / "progress.json").write_text("{}")
        module.torch.save({"optimizer": {}, "random_states": []}, step / "optimizer.pt")
        row = {"kind": "train", "step": 1, "loss": loss, "timing": {"wall_seconds": seconds}}
        (tmp_path / "metrics.jsonl").write_text(json.dumps(row) + "\n")
        return module.fingerprint(Path(tmp_path))

    assert digest(0.5, 1.0, b"w") == digest(0.5, 2.0, b"w")
    assert digest(0.5, 1.0, b"w") != digest(0.6, 1.0, b"w")
    assert digest(0.5, 1.0, b"w") != digest(0.5, 1.0, b"v")
