"""The body of a rank that fails while the others wait for it: `torchrun -m tests.failing_rank raise|kill`.

SIGTERM is ignored, as a training run's handler does until its step ends: only the peer watch can end the others.
"""

import os
import signal
import sys

from cs336_alignment.ranks import Ranks, failing_together, leave_peers


def main() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with failing_together():
        ranks = Ranks()
        ranks.wait()
        if ranks.index == 1 and "raise" in sys.argv:
            raise ValueError("the data ran out")
        if ranks.index == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        ranks.wait()
        leave_peers()


if __name__ == "__main__":
    main()
