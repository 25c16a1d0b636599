"""The record of a run: which options a resumed run may change."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from cs336_alignment.ranks import Ranks
from cs336_alignment.run_folder import OtherRunError, check_same_run, read_complete_json_lines, read_json
from cs336_alignment.training.run_record import RunRecord, WandbMode, settings_of
from cs336_alignment.training.session import UNMATCHED, RunConfig
from cs336_alignment.training.sft import SFTConfig


def record(folder, config, start_step: int | None = 0, data=(), wandb_mode: WandbMode = "disabled", wandb_id=None):
    settings = settings_of(config, data)
    check_same_run(folder, "config", settings, UNMATCHED)
    return RunRecord(
        folder,
        settings,
        {},
        Ranks(),
        steps=9,
        job_type="SFT",
        start_step=start_step,
        wandb_mode=wandb_mode,
        wandb_id=wandb_id,
    )


def test_a_resumed_run_may_change_where_and_how_long_it_runs(tmp_path):
    began = SFTConfig(run=RunConfig(output=Path("runs/a"), resume="never", time_limit_minutes=5))
    goes_on = SFTConfig(run=RunConfig(output=Path("elsewhere/a"), resume="auto", gpu_memory_utilization=0.2, threads=1))
    record(tmp_path, began).close()
    record(tmp_path, goes_on).close()
    record(tmp_path, replace(goes_on, optimizer=replace(goes_on.optimizer, token_budget=512))).close()
    run = read_json(tmp_path / "run.json")
    assert len(run["sessions"]) == 3
    assert run["config"]["run"]["time_limit_minutes"] == 5  # all of the options, as it began


def test_a_resumed_run_may_not_change_what_it_computes(tmp_path):
    config = SFTConfig()
    record(tmp_path, config).close()
    with pytest.raises(OtherRunError, match=r"another run\.temperature: "):
        record(tmp_path, replace(config, run=RunConfig(temperature=0.5)))
    with pytest.raises(OtherRunError, match="another append_eos: "):
        record(tmp_path, replace(config, append_eos=False))


def test_a_resumed_run_must_find_the_same_data(tmp_path):
    data = tmp_path / "train.jsonl"
    data.write_text("{}\n")
    record(tmp_path / "run", SFTConfig(), data=[data]).close()
    record(tmp_path / "run", SFTConfig(), data=[data]).close()
    data.write_text("{}\n{}\n")
    with pytest.raises(OtherRunError, match="another data_sha256"):
        record(tmp_path / "run", SFTConfig(), data=[data])


def test_what_came_after_the_checkpoint_is_cut(tmp_path):
    with record(tmp_path, SFTConfig(), start_step=None) as run:
        for step in (1, 2, 3):
            run.log("train", step, {"loss": float(step)}, {})
            run.completions(f"rollouts_step_{step}", [{"step": step}])
    record(tmp_path, SFTConfig(), start_step=2).close()
    rows = read_complete_json_lines(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2]
    assert {path.name for path in (tmp_path / "completions").iterdir()} == {f"rollouts_step_{n}.jsonl" for n in (1, 2)}
    # Without a checkpoint the run begins anew, and so does its record.
    record(tmp_path, SFTConfig(), start_step=None).close()
    assert read_complete_json_lines(tmp_path / "metrics.jsonl") == []


class FakeWandb:
    """What is called of wandb, and with what."""

    def __init__(self, fails_at=""):
        self.calls, self._fails_at = [], fails_at

    def __getattr__(self, name):
        def call(*arguments, **options):
            self.calls.append((name, arguments, options))
            if name == self._fails_at:
                raise OSError("no space left")
            return self

        return call


def test_wandb_mirrors_the_run_under_one_id(tmp_path, monkeypatch):
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    with record(tmp_path, SFTConfig(), start_step=None, wandb_mode="offline") as run:
        run.log("train", 3, {"loss": 0.5, "alarms": []}, {"step_seconds": 1.0})
    with record(tmp_path, SFTConfig(), start_step=3, wandb_mode="offline", wandb_id=run.wandb_id):
        pass
    names = [name for name, *_ in fake.calls]
    assert names == ["init", *["define_metric"] * 4, "log", "finish", "init", *["define_metric"] * 4, "finish"]
    first, second = (options for name, _, options in fake.calls if name == "init")
    assert first["mode"] == "offline"
    assert first["id"] == second["id"] == run.wandb_id
    assert fake.calls[2] == ("define_metric", ("train/*",), {"step_metric": "train_step"})
    [logged] = fake.calls[5][1]
    assert logged.pop("train/wall_seconds") >= 0
    assert logged == {"train_step": 3, "train/loss": 0.5, "train/step_seconds": 1.0}


@pytest.mark.parametrize("fails_at", ["init", "log", "finish", "import"])
def test_wandb_that_fails_does_not_end_the_run(tmp_path, monkeypatch, capsys, fails_at):
    monkeypatch.setitem(sys.modules, "wandb", None if fails_at == "import" else FakeWandb(fails_at))
    with record(tmp_path, SFTConfig(), wandb_mode="offline") as run:
        for step in (1, 2):
            run.log("train", step, {"loss": 0.5}, {})
    assert capsys.readouterr().err.count("wandb is left out from here on") == 1
    assert len(read_complete_json_lines(tmp_path / "metrics.jsonl")) == 2
