"""The record of a run: which options a resumed run may change."""

from dataclasses import replace
from pathlib import Path

import pytest

from cs336_alignment.run_folder import OtherRunError, read_complete_json_lines, read_json
from cs336_alignment.training.distributed import Ranks
from cs336_alignment.training.run_record import RunRecord
from cs336_alignment.training.session import UNMATCHED, RunConfig
from cs336_alignment.training.sft import SFTConfig


def record(folder, config, start_step: int | None = 0, data=()):
    return RunRecord(
        folder,
        config,
        {},
        Ranks(),
        steps=9,
        data=data,
        start_step=start_step,
        wandb_mode="disabled",
        unmatched=UNMATCHED,
    )


def test_a_resumed_run_may_change_where_and_how_long_it_runs(tmp_path):
    began = SFTConfig(run=RunConfig(output=Path("runs/a"), resume="never", time_limit_minutes=5))
    goes_on = SFTConfig(run=RunConfig(output=Path("elsewhere/a"), resume="auto", gpu_memory_utilization=0.2, threads=1))
    record(tmp_path, began).close()
    record(tmp_path, goes_on).close()
    assert len(read_json(tmp_path / "run.json")["sessions"]) == 2


def test_a_resumed_run_may_not_change_what_it_computes(tmp_path):
    config = SFTConfig()
    record(tmp_path, config).close()
    with pytest.raises(OtherRunError, match="another run"):
        record(tmp_path, replace(config, run=RunConfig(temperature=0.5)))
    with pytest.raises(OtherRunError, match="another append_eos"):
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
