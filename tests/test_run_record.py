"""The record of a run: which options a resumed run may change."""

from dataclasses import replace
from pathlib import Path

import pytest

from cs336_alignment.run_folder import OtherRunError, read_json
from cs336_alignment.training.distributed import Ranks
from cs336_alignment.training.run_record import RunRecord
from cs336_alignment.training.session import UNMATCHED, RunConfig
from cs336_alignment.training.sft import SFTConfig


def record(folder, config):
    with RunRecord(folder, config, {}, Ranks(), steps=1, start_step=0, wandb_mode="disabled", unmatched=UNMATCHED):
        pass


def test_a_resumed_run_may_change_where_and_how_long_it_runs(tmp_path):
    began = SFTConfig(run=RunConfig(output=Path("runs/a"), resume="never", time_limit_minutes=5))
    goes_on = SFTConfig(run=RunConfig(output=Path("elsewhere/a"), resume="auto", gpu_memory_utilization=0.2, threads=1))
    record(tmp_path, began)
    record(tmp_path, goes_on)
    assert len(read_json(tmp_path / "run.json")["sessions"]) == 2


def test_a_resumed_run_may_not_change_what_it_computes(tmp_path):
    config = SFTConfig()
    record(tmp_path, config)
    with pytest.raises(OtherRunError, match="another run"):
        record(tmp_path, replace(config, run=RunConfig(temperature=0.5)))
    with pytest.raises(OtherRunError, match="another append_eos"):
        record(tmp_path, replace(config, append_eos=False))
