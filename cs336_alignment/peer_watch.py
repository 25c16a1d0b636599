"""One rank's failure ends all ranks, with the same message and within seconds.

Ranks meet in collective operations. Where one of them raises, or is killed, the others would wait for it until a
time-out of hours. So each rank has a thread that looks, twice a second, at the store through which the ranks found each
other: a rank that fails leaves its message there, and the others end with it. A rank of the same machine that is no
longer alive, as after the kernel's out-of-memory killer, leaves none, and is missed by its process id.
"""

import os
import socket
import sys
import threading
from contextlib import suppress
from datetime import timedelta
from time import sleep
from typing import ClassVar

import psutil
from torch.distributed import PrefixStore, TCPStore  # pyright: ignore[reportPrivateImportUsage]

POLL_SECONDS = 0.5
ACKNOWLEDGE_SECONDS = 5.0
"""A rank that fails stays for so long at most, until the others have read why: the store may live in its process."""


class PeerWatch:
    """See the module's page. One a process."""

    _of_this_process: ClassVar["PeerWatch | None"] = None

    def __init__(self, index: int, count: int) -> None:
        self._index, self._count = index, count
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        # A connection of its own: one on which the main thread waits would block.
        store = TCPStore(
            os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, timeout=timedelta(seconds=60)
        )
        self._store = PrefixStore(f"peer_watch_{attempt}", store)
        self._store.set(f"process_{index}", f"{socket.gethostname()} {os.getpid()}")
        self._neighbours: dict[int, int] = {}
        self._told = False
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="peer watch", daemon=True)
        self._thread.start()

    @classmethod
    def start(cls, index: int, count: int) -> None:
        """Begin to watch the peers, whom this process has met."""
        if cls._of_this_process is None:
            cls._of_this_process = cls(index, count)

    @classmethod
    def stop(cls) -> None:
        """This rank is done, and so are the others: each comes here after the run's last collective operation."""
        if cls._of_this_process is not None:
            cls._of_this_process._end()
            cls._of_this_process = None

    @classmethod
    def tell(cls, message: str, status: int) -> None:
        """This rank fails: let the others end with this message and exit status, and wait until they know."""
        if cls._of_this_process is not None:
            cls._of_this_process._tell(message, status)

    def _tell(self, message: str, status: int) -> None:
        if self._told:
            return
        self._told = True
        self._stopped.set()
        self._thread.join()
        with suppress(RuntimeError):  # no store any more, or a peer that did not answer in time
            known = self._known_failure(f"{status} rank {self._index} failed: {message}")
            if not known.startswith(f"{status} rank {self._index} "):  # what failed here is only what came of it
                _say(known)
            others = [f"knows_{rank}" for rank in range(self._count) if rank != self._index]
            self._store.wait(others, timedelta(seconds=ACKNOWLEDGE_SECONDS))

    def _known_failure(self, mine: str) -> str:
        """The failure that all ranks end with: that of a rank that died, or said so earlier, before this rank's own."""
        for _ in range(2):  # a killed process closes its connections a moment before it is gone
            failure = self._failure()
            if failure is not None:
                return failure
            sleep(POLL_SECONDS)
        self._store.compare_set("failure", "", mine)
        return self._failure() or mine

    def _end(self) -> None:
        with suppress(RuntimeError):  # the store is gone, and with it the rank that held it: everyone is leaving
            self._store.set(f"done_{self._index}", "")
        self._stopped.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stopped.wait(POLL_SECONDS):
            try:
                failure = self._failure()
            except RuntimeError:
                failure = "1 the rank that held the ranks' common store is gone"
            if failure and not self._stopped.is_set():
                os._exit(_say(failure))  # the main thread may be waiting for a rank that will never come

    def _failure(self) -> str | None:
        """Exit status and message of the rank that failed first."""
        if not self._store.check(["failure"]):
            dead = self._dead_neighbour()
            if dead is None:
                return None
            self._store.compare_set(
                "failure", "", f"1 rank {dead} failed: it ended without a word, as a killed process does"
            )
        self._store.set(f"knows_{self._index}", "")
        return self._store.get("failure").decode()

    def _dead_neighbour(self) -> int | None:
        """A rank of this machine whose process is gone, though it did not say that it was done."""
        for rank in range(self._count):
            if rank not in self._neighbours and self._store.check([f"process_{rank}"]):
                host, process = self._store.get(f"process_{rank}").decode().split()
                self._neighbours[rank] = int(process) if host == socket.gethostname() else os.getpid()
        for rank, process in self._neighbours.items():
            if not _alive(process) and not self._store.check([f"done_{rank}"]):
                # It may have failed in the meantime, and said why.
                return None if self._store.check(["failure"]) else rank
        return None


def _say(failure: str) -> int:
    """Print a failure, and return its exit status."""
    status, _, message = failure.partition(" ")
    print(f"error: {message}", file=sys.stderr, flush=True)
    return int(status)


def _alive(process: int) -> bool:
    try:
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
