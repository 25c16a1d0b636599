"""From a command line to a run: what the training scripts share."""

import os
import sys
from collections.abc import Callable
from typing import TypeVar

import torch
import torch.distributed as dist

from cs336_alignment import environment
from cs336_alignment.command_line import FAILED, INTERRUPTED, STOPPED, UNUSABLE, parse_options
from cs336_alignment.ranks import failing_together, leave_peers
from cs336_alignment.rollout.engine import EngineError
from cs336_alignment.rollout.proof import SamplerDifferenceError, StalePolicyError
from cs336_alignment.rollout.selection import EngineNotInstalledError
from cs336_alignment.run_folder import UsageError
from cs336_alignment.training.learner import NonFiniteLossError
from cs336_alignment.training.memory_check import TrainingConfig, settle

Config = TypeVar("Config")


def run_command(config_type: type[Config], description: str | None, run: Callable[[Config], bool | None]) -> None:
    """Parse the options, check driver and memory, run, and end with a status of cs336_alignment/command_line.py.

    Args:
        config_type, description: as `parse_options` has them.
        run: the command; it returns False where it was asked to stop before its end.

    Raises:
        SystemExit: 2 for what a user can mend, 1 where the run gave up, 75 where it was stopped. Finished, it returns.
    """
    try:
        config = parse_options(config_type, description)
        environment.check_cuda_driver()
        environment.use_device_indices()
        if torch.cuda.is_available():
            # Before anything asks a GPU: each rank would leave a context on the first one.
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        with failing_together():
            if not isinstance(config, TrainingConfig):
                run(config)
                return
            config = settle(config)
            if config.run.dry_run:
                return
            finished = run(config)
            if dist.is_initialized():
                dist.barrier()  # a launcher kills the others as soon as one rank has ended with another status than 0
            leave_peers()
        if finished is False:
            sys.exit(STOPPED)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except (UsageError, EngineNotInstalledError, environment.MachineError) as error:
        _fail(error, UNUSABLE)
    except (EngineError, StalePolicyError, SamplerDifferenceError, NonFiniteLossError) as error:
        _fail(error, FAILED)


def _fail(error: Exception, status: int) -> None:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(status)
