"""Asked to stop: by SIGTERM or SIGUSR1, as schedulers send them before the end, by Ctrl-C, by a terminal that is closed
(SIGHUP), or by a time limit of one's own.

A loop looks between two steps, writes a checkpoint and ends with exit status 75; `--resume auto` goes on from there. It
stops before the time limit where another step, as long as the longest so far, would end after it. Within a long step a
loop may look for a signal. A second Ctrl-C ends at once.
"""

import signal
from time import monotonic
from types import FrameType

from cs336_alignment.ranks import Ranks

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)


class Interruption:
    """Whether this run should stop. Installs its signal handlers when made: in the main thread."""

    def __init__(self, ranks: Ranks, began: float, time_limit_minutes: float | None = None) -> None:
        """Begin to listen.

        Args:
            ranks: all of them stop where one is asked to.
            began: when the run did, on the monotonic clock: before its models were loaded.
            time_limit_minutes: have stopped so long after it; leave room for a checkpoint before the job's end.
        """
        self._ranks = ranks
        self._last_look = monotonic()
        self._longest_step = 0.0
        self._deadline = None if time_limit_minutes is None else began + 60 * time_limit_minutes
        self._signal: str | None = None
        self._before = {number: signal.signal(number, self._note) for number in SIGNALS}

    def reason(self) -> str | None:
        """Why to stop now, the same on every rank; None to go on."""
        mine, now = self._signal, monotonic()
        self._longest_step = max(self._longest_step, now - self._last_look)
        self._last_look = now
        if mine is None and self._deadline is not None and now + self._longest_step > self._deadline:
            mine = "time limit"
        return self._ranks.any_of(mine)

    def signalled(self) -> str | None:
        """The signal that came, the same on every rank; None without one."""
        return self._ranks.any_of(self._signal)

    def restore(self) -> None:
        """Put the handlers back that were there before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT and self._signal == "SIGINT":
            raise KeyboardInterrupt
        self._signal = signal.Signals(number).name
