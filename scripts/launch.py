"""Start a command on several ranks: torchrun, but with the exit status of the command itself.

    python scripts/launch.py --standalone --nproc-per-node 4 scripts/train_grpo.py --model MODEL --output runs/grpo

The options are torchrun's. torchrun ends with status 1 whatever its ranks ended with; a job script has to know whether
they failed, or were stopped and can go on (the statuses are in cs336_alignment/command_line.py). And where torchrun is
sent a signal it gives its ranks 30 seconds; here they are told of it, and write their checkpoint in their own time.
"""

import signal
import sys
from collections.abc import Iterable
from types import FrameType

import psutil
from torch.distributed import run as torchrun
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from cs336_alignment.command_line import STOPPED

PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
LEFT_TO_TORCHRUN = "SIGHUP,SIGQUIT"


def main(arguments: list[str] | None = None) -> None:
    """Run the ranks to their end.

    Raises:
        SystemExit: with their status, where that is not 0.
    """
    options = torchrun.parse_args(arguments)
    options.signals_to_handle = LEFT_TO_TORCHRUN
    for number in PASSED_ON:
        signal.signal(number, _tell_ranks)
    try:
        torchrun.run(options)
    except ChildFailedError as error:
        status = exit_status(failure.exitcode for failure in error.failures.values())
        if status != STOPPED:
            print(error, file=sys.stderr)
        sys.exit(status)


def exit_status(of_ranks: Iterable[int]) -> int:
    """What the launcher ends with, from what its ranks did, those that finished left out.

    Ranks agree on stopping, and have their checkpoint then: one status of 75 speaks for all, unless another rank failed
    by itself. SIGTERM and SIGKILL are what torchrun ends the peers of such a rank with.

    Args:
        of_ranks: their statuses; negative numbers are signals.
    """
    statuses = list(of_ranks)
    own = [status for status in statuses if status not in (-signal.SIGTERM, -signal.SIGKILL)] or statuses
    first = next((status for status in own if status != STOPPED), STOPPED)
    return first if first > 0 else 128 - first  # as a shell has it


def _tell_ranks(number: int, _: FrameType | None) -> None:
    ranks = psutil.Process().children()
    if not ranks:
        sys.exit(STOPPED)  # nothing has begun
    for rank in ranks:
        rank.send_signal(number)


if __name__ == "__main__":
    main()
