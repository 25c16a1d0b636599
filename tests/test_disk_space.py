"""A run whose checkpoints would fill the disk is refused before anything is loaded."""

import re
from collections import namedtuple

import pytest
import torch

from cs336_alignment.ranks import Ranks
from cs336_alignment.run_folder import UsageError
from cs336_alignment.training import disk_space
from cs336_alignment.training.checkpoint import Checkpoints, Progress
from cs336_alignment.training.disk_space import RUN_FILES, TOKENIZER_FILES, check_disk, checkpoint_bytes
from cs336_alignment.training.grpo import GRPOConfig
from cs336_alignment.training.learner import Learner, OptimizerConfig
from cs336_alignment.training.memory import GIB, ModelShape
from cs336_alignment.training.memory_check import read_shape, settle
from cs336_alignment.training.packing import TokenExample
from cs336_alignment.training.policy import Policy
from cs336_alignment.training.session import RunConfig
from tests.common import REPOSITORY, TINY_QWEN2
from tests.test_memory import HEAD, PARAMETERS, QWEN_1_5B

Usage = namedtuple("Usage", "total used free")
QWEN = ModelShape.from_config(QWEN_1_5B)
ONE = 12 * PARAMETERS + 4 * HEAD + TOKENIZER_FILES


@pytest.fixture
def disk(monkeypatch):
    """Say how much is free; what was asked about."""
    asked = []

    def set_free(free):
        def usage(path):
            asked.append(path)
            return Usage(10**15, 10**15 - free, free)

        monkeypatch.setattr(disk_space.shutil, "disk_usage", usage)
        return asked

    return set_free


def test_a_checkpoint_by_hand():
    assert checkpoint_bytes(QWEN) == ONE


def test_room_for_those_that_are_kept_and_one_more(disk, tmp_path):
    asked = disk(3 * ONE + RUN_FILES)
    check_disk(QWEN, tmp_path / "not" / "there", keep=2)
    assert asked == [tmp_path]
    disk(3 * ONE + RUN_FILES - 1)
    with pytest.raises(UsageError, match=r"checkpoints of 18\.2 GiB, of which 2 are kept .*lower --keep-checkpoints"):
        check_disk(QWEN, tmp_path, keep=2)
    check_disk(QWEN, tmp_path, keep=1)
    disk(0)
    with pytest.raises(UsageError, match=r"on a larger disk$"):
        check_disk(QWEN, tmp_path, keep=1)


def test_checkpoints_that_are_there_count(disk, tmp_path):
    """A run on a disk that it has nearly filled itself can go on."""
    weights = tmp_path / "checkpoints" / "step_10" / "model.safetensors"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(bytes(10**6))
    disk(2 * ONE + RUN_FILES - 10**6)
    check_disk(QWEN, tmp_path, keep=1)
    disk(2 * ONE + RUN_FILES - 10**6 - 1)
    with pytest.raises(UsageError, match=re.escape(str(tmp_path))):
        check_disk(QWEN, tmp_path, keep=1)


@pytest.mark.parametrize("model", [TINY_QWEN2, REPOSITORY / "data/policy"], ids=["tied", "embedded"])
def test_a_checkpoint_is_as_large_as_predicted(model, tmp_path):
    policy = Policy.load(model)
    learner = Learner(policy, OptimizerConfig(), Ranks(), tmp_path)
    learner.step([TokenExample((1, 2), (3, 4))], torch.ones(1), lambda _: lambda log_probs, at: -log_probs)
    saved = Checkpoints(tmp_path).save(learner, Progress())
    written = sum((saved / name).stat().st_size for name in ("model.safetensors", "optimizer.pt"))
    assert written == pytest.approx(checkpoint_bytes(read_shape(str(model))) - TOKENIZER_FILES, rel=0.1)


def test_a_command_asks_first(disk, tmp_path):
    config = GRPOConfig(run=RunConfig(model=str(TINY_QWEN2), output=tmp_path / "run"))
    disk(2 * GIB)
    settle(config)
    disk(2**20)
    with pytest.raises(UsageError, match=r"the disk has 0\.0 GiB free"):
        settle(config)
    assert not (tmp_path / "run").exists()
