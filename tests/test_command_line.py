"""Options, recipe files, and the statuses that commands end with, by themselves and under the launcher."""

import os
import signal
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pytest

from cs336_alignment.command_line import FINISHED, STOPPED, UNUSABLE, option_types, parse_options
from cs336_alignment.run_folder import UsageError, record_session
from cs336_alignment.training import command_line
from cs336_alignment.training.grpo import GRPOConfig
from cs336_alignment.training.session import RunConfig
from scripts.launch import exit_status
from tests.common import REPOSITORY


@dataclass(frozen=True)
class Optimizer:
    learning_rate: float = 1.0
    betas: tuple[float, float] = (0.9, 0.95)


@dataclass(frozen=True)
class Options:
    optimizer: Optimizer = field(default_factory=Optimizer)
    stop: tuple[str, ...] = ("</answer>",)
    by_std: bool = True
    limit: int | None = 5
    output: Path | None = None


def parse(path, *arguments):
    return parse_options(Options, None, ["--config", str(path), *arguments])


def test_a_recipe_sets_options_and_the_command_line_wins(tmp_path):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('learning_rate = 6e-6\nbetas = [0.8, 0.9]\nstop = ["\\n", "b"]\nby_std = false\n')
    assert parse(recipe) == Options(Optimizer(6e-6, (0.8, 0.9)), ("\n", "b"), False)
    # As on the command line: the last of two holds, wherever --config stands.
    given = parse_options(Options, None, ["--learning-rate", "2", f"--config={recipe}", "--by-std", "--stop", "a"])
    assert given == Options(Optimizer(2.0, (0.8, 0.9)), ("a",), True)
    assert parse_options(Options, None, []) == Options()


def test_an_earlier_run_is_a_recipe_but_for_where_it_wrote(tmp_path):
    run = Options(Optimizer(3e-6, (0.5, 0.6)), (), False, None, Path("runs/a"))
    record_session(tmp_path, {**asdict(run), "data_sha256": {"data/train.jsonl": "ab"}}, {}, {})
    assert parse(tmp_path / "run.json") == Options(Optimizer(3e-6, (0.5, 0.6)), (), False, None, None)
    assert parse(tmp_path / "run.json", "--output", "b").output == Path("b")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.toml", "learning_rat = 1", "a.toml sets learning_rat, which .* has not; the nearest is learning_rate"),
        ("a.toml", "[optimizer]\nlearning_rate = 1.0", "sets optimizer, which this command has not"),
        ("a.toml", "learning_rate 1.0", "neither TOML nor the run.json of a run"),
        ("run.json", "{}", "neither TOML nor the run.json of a run"),
        ("run.json", '{"config": {"limits": 3}}', "the nearest is limit"),
    ],
)
def test_a_recipe_that_cannot_be_used_says_why(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(UsageError, match=message):
        parse(tmp_path / name)
    with pytest.raises(UsageError, match=r"there is no .*other\.toml"):
        parse(tmp_path / "other.toml")


def test_a_wrong_value_in_a_recipe_names_the_file(tmp_path, capsys):
    (tmp_path / "recipe.toml").write_text('limit = "many"')
    with pytest.raises(SystemExit) as ended:
        parse(tmp_path / "recipe.toml")
    assert ended.value.code == UNUSABLE
    assert "recipe.toml were read before" in capsys.readouterr().err


def test_an_option_that_may_be_unset_is_read_back(tmp_path):
    """What a run left open, and what it chose."""
    for value in (None, True, False):
        record_session(tmp_path / str(value), asdict(GRPOConfig(RunConfig(activation_checkpointing=value))), {}, {})
        read = parse_options(GRPOConfig, None, ["--config", str(tmp_path / str(value) / "run.json")])
        assert read.run.activation_checkpointing is value
        assert read.optimizer.token_budget is None


def test_options_of_a_real_command_have_names_of_their_own():
    """Without prefixes two fields of one name would be one option."""
    names = [name for name, _ in option_types(GRPOConfig)]
    assert len(names) == len(set(names)) > 40
    assert {"model", "learning_rate", "group_size"} <= set(names)


@pytest.mark.parametrize(("finished", "status"), [(True, FINISHED), (None, FINISHED), (False, STOPPED)])
def test_a_stopped_run_has_a_status_of_its_own(finished, status, monkeypatch):
    config = GRPOConfig(run=RunConfig(model="data/policy"))
    monkeypatch.setattr(command_line, "parse_options", lambda *_: config)
    ended = FINISHED
    try:
        command_line.run_command(GRPOConfig, None, lambda _: finished)
    except SystemExit as exit:
        ended = exit.code
    assert ended == status


def test_the_baseline_reads_recipes(tmp_path, monkeypatch, capsys):
    from cs336_alignment import math_baseline

    (tmp_path / "recipe.toml").write_text("limit = 0")
    monkeypatch.setattr(sys, "argv", ["math_baseline", "--config", str(tmp_path / "recipe.toml")])
    with pytest.raises(SystemExit) as ended:
        math_baseline.main()
    assert ended.value.code == UNUSABLE
    assert "--limit must be at least 1, got 0" in capsys.readouterr().err


KILLED, TOLD_TO_END = -signal.SIGKILL, -signal.SIGTERM


@pytest.mark.parametrize(
    ("of_ranks", "status"),
    [
        ([75], 75),
        ([75, 75], 75),
        ([75, TOLD_TO_END], 75),  # slow to leave
        ([KILLED, 75, TOLD_TO_END], 75),
        ([1, TOLD_TO_END, KILLED], 1),
        ([TOLD_TO_END, 1], 1),
        ([75, 1], 1),
        ([2, 2], 2),
        ([-signal.SIGSEGV, TOLD_TO_END], 139),
        ([KILLED, TOLD_TO_END], 137),  # the kernel's doing, for want of memory
        ([TOLD_TO_END, TOLD_TO_END], 143),
    ],
)
def test_the_launcher_ends_as_its_ranks_did(of_ranks, status):
    assert exit_status(of_ranks) == status


def launched(tmp_path, program, **options):
    (tmp_path / "worker.py").write_text(program)
    command = "scripts/launch.py --standalone --nproc-per-node 2".split()
    return subprocess.Popen(
        [sys.executable, *command, str(tmp_path / "worker.py")],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        **options,
    )


@pytest.mark.parametrize(("of_ranks", "status"), [([0, 0], 0), ([75, 75], 75)])
def test_the_launcher_has_the_ranks_status(tmp_path, of_ranks, status):
    program = f"import os, sys\nsys.exit({of_ranks}[int(os.environ['RANK'])])"
    assert launched(tmp_path, program, stderr=subprocess.DEVNULL).wait() == status


ONE_FAILS = """
import os, signal, sys
if os.environ["RANK"] == "1":
    sys.exit(1)
signal.signal(signal.SIGTERM, lambda *_: os._exit(75))
signal.pause()
"""


def test_a_rank_that_failed_decides_the_status(tmp_path):
    """Not the other, which is told to stop because of it, and stops well."""
    assert launched(tmp_path, ONE_FAILS, stderr=subprocess.DEVNULL).wait() == 1


LISTENER = """
import os, signal
for number in (signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, lambda *_: os._exit(75))
os.write(1, b"listening\\n")
signal.pause()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_the_launcher_passes_a_signal_on_and_waits(tmp_path, monkeypatch, number):
    """Also where its environment has torchrun take the signal for itself, as the jobs' has."""
    monkeypatch.setenv("PET_SIGNALS_TO_HANDLE", "SIGTERM,SIGINT,SIGUSR1")
    process = launched(tmp_path, LISTENER, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    for _ in range(2):
        assert process.stdout.readline() == "listening\n"
    process.send_signal(number)
    assert process.wait() == STOPPED
