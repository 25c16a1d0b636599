"""From a command line to a run: what the training scripts share."""

import sys
from collections.abc import Callable
from typing import TypeVar

import torch
import tyro

from cs336_alignment import environment
from cs336_alignment.ranks import failing_together, leave_peers
from cs336_alignment.rollout.proof import SamplerDifferenceError, StalePolicyError
from cs336_alignment.rollout.selection import EngineNotInstalledError
from cs336_alignment.run_folder import UsageError
from cs336_alignment.training.learner import NonFiniteLossError
from cs336_alignment.training.memory_check import TrainingConfig, check_memory

Config = TypeVar("Config")


def run_command(config_type: type[Config], description: str | None, run: Callable[[Config], object]) -> None:
    """Parse the options, check driver and memory, run; what a user can mend ends in an error message and status 2."""
    try:
        config = tyro.cli(config_type, description=description, config=(tyro.conf.OmitArgPrefixes,))
        environment.check_cuda_driver()
        environment.use_device_indices()
        with failing_together():
            if not isinstance(config, TrainingConfig):
                run(config)
                return
            if config.run.dry_run or torch.cuda.is_available():
                check_memory(config)
            if not config.run.dry_run:
                run(config)
                leave_peers()
    except (UsageError, EngineNotInstalledError) as error:
        _fail(error, 2)
    except environment.MachineError as error:
        _fail(error, 2)
    except (StalePolicyError, SamplerDifferenceError, NonFiniteLossError) as error:
        _fail(error, 1)


def _fail(error: Exception, status: int) -> None:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(status)
