"""The checks of `cs336-check-node` as tests, for whoever has a GPU: `uv run pytest -m gpu`.

They are skipped without one, and nobody has seen them pass: this project is made on CPUs.
"""

import os
from pathlib import Path

import pytest
import torch

from cs336_alignment.node_check.command import CHECKS
from cs336_alignment.node_check.launch import run_check
from cs336_alignment.node_check.outcome import Setting

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU that torch can use"),
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
def test_the_machine(check, tmp_path: Path):
    """CS336_MODEL names the model of the checks that need one."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    setting = Setting(tmp_path, os.environ.get("CS336_MODEL"), torch.cuda.device_count(), visible)
    outcome = run_check(check, setting)
    if outcome.status == "skipped":
        pytest.skip(outcome.message)
    assert outcome.status == "pass", f"{outcome.message}\ntype: {outcome.to_type}"
