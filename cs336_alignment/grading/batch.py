"""Grade many responses, here or in a pool of processes that outlives its workers.

Each worker is a process of its own with one item in hand, so that a worker that is killed, crashes or overruns costs
that item alone: the item is marked, a new worker takes the next one. Workers are spawned, never forked, so that threads
and CUDA in the caller (a torchrun rank, say) are no concern; as always under spawn, a script that calls this needs its
`if __name__ == "__main__":`, and the reward function has to be importable.
"""

import multiprocessing
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from cs336_alignment.grading.gold import Gold

RewardFunction = Callable[[str, Gold], dict[str, float]]


@dataclass(frozen=True, slots=True)
class GradedItem:
    """One response of a batch.

    Attributes:
        rewards: what the reward function returned; None where it could not be had.
        seconds: how long the item took.
        error: why there are no rewards ("worker died", "over 10 s", an exception); None where there are.
    """

    rewards: dict[str, float] | None
    seconds: float
    error: str | None = None


def grade_batch(
    responses: Sequence[str],
    golds: Sequence[Gold],
    reward_fn: RewardFunction,
    workers: int = 0,
    time_limit: float = 10.0,
) -> list[GradedItem]:
    """Grade a batch, keeping its order.

    Args:
        responses: the responses.
        golds: their gold answers, as many.
        reward_fn: called as `reward_fn(response, gold)`; for the pool it must be picklable
            (`functools.partial(r1_zero_reward_fn, fast=False)` is).
        workers: processes to use; 0 grades in this process. A worker takes a second or so to start, and an ordinary
            item a tenth of a millisecond: the pool is for large batches and for reward functions that are not trusted.
        time_limit: seconds after which a worker is killed and its item marked; without workers there is no limit.

    Raises:
        ValueError: the lengths differ, or `workers` is negative.
    """
    if len(responses) != len(golds):
        raise ValueError(f"{len(responses)} responses but {len(golds)} gold answers")
    if workers < 0:
        raise ValueError(f"workers must be 0 or more, not {workers}")
    items = list(zip(responses, golds, strict=True))
    if workers == 0:
        return [_grade_item(reward_fn, response, gold) for response, gold in items]
    return _Pool(items, reward_fn, min(workers, len(items)), time_limit).run()


def _grade_item(reward_fn: RewardFunction, response: str, gold: Gold) -> GradedItem:
    start = time.perf_counter()
    try:
        rewards, error = reward_fn(response, gold), None
    except Exception as exception:  # of any reward function: reported with the item, the batch goes on
        rewards, error = None, f"{type(exception).__name__}: {exception}"
    return GradedItem(rewards, time.perf_counter() - start, error)


def _work(connection: Connection, reward_fn: RewardFunction) -> None:
    """A worker's life: items in, graded items out, until the connection closes."""
    connection.send("ready")
    while True:
        try:
            response, gold = connection.recv()
        except EOFError:
            return
        connection.send(_grade_item(reward_fn, response, gold))


@dataclass(slots=True)
class _Worker:
    process: BaseProcess
    connection: Connection
    item: int | None = None
    since: float = 0.0


class _Pool:
    # A worker that dies before its first item would die again: the batch is given up after this many in a row.
    _MAX_FAILED_STARTS = 3
    _POLL_SECONDS = 0.05

    def __init__(
        self, items: list[tuple[str, Gold]], reward_fn: RewardFunction, workers: int, time_limit: float
    ) -> None:
        self._items, self._reward_fn, self._size, self._time_limit = items, reward_fn, workers, time_limit
        self._waiting = deque(range(len(items)))
        self._graded: dict[int, GradedItem] = {}
        self._context = multiprocessing.get_context("spawn")
        self._workers: list[_Worker] = []
        self._failed_starts = 0

    def run(self) -> list[GradedItem]:
        try:
            while len(self._graded) < len(self._items):
                while len(self._workers) < min(self._size, len(self._items) - len(self._graded)):
                    self._workers.append(self._start())
                self._step()
        finally:
            for worker in list(self._workers):
                self._remove(worker)
        return [self._graded[position] for position in range(len(self._items))]

    def _start(self) -> _Worker:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_work, args=(theirs, self._reward_fn), daemon=True)
        process.start()
        theirs.close()
        return _Worker(process, ours)

    def _step(self) -> None:
        """Take what has arrived, hand out what waits, end what overruns."""
        ready = wait([worker.connection for worker in self._workers], self._POLL_SECONDS)
        for worker in list(self._workers):
            if worker.connection in ready:
                self._receive(worker)
            elif worker.item is not None and time.perf_counter() - worker.since > self._time_limit:
                self._give_up(worker, f"over {self._time_limit:g} s")

    def _receive(self, worker: _Worker) -> None:
        try:
            message = worker.connection.recv()
        except (EOFError, ConnectionError):
            self._give_up(worker, "worker died")
            return
        if worker.item is not None:
            self._graded[worker.item] = message
        self._failed_starts = 0
        self._hand_out(worker)

    def _hand_out(self, worker: _Worker) -> None:
        worker.item = self._waiting.popleft() if self._waiting else None
        if worker.item is None:
            self._remove(worker)
            return
        worker.since = time.perf_counter()
        try:
            worker.connection.send(self._items[worker.item])
        except ConnectionError:
            self._give_up(worker, "worker died")

    def _give_up(self, worker: _Worker, error: str) -> None:
        if worker.item is not None:
            self._graded[worker.item] = GradedItem(None, time.perf_counter() - worker.since, error)
        else:
            self._failed_starts += 1
            if self._failed_starts >= self._MAX_FAILED_STARTS:
                raise RuntimeError(
                    "the grading workers die on starting: is the reward function importable, and the call behind "
                    'if __name__ == "__main__"?'
                )
        self._remove(worker)

    def _remove(self, worker: _Worker) -> None:
        """A worker has nothing to lose: it is killed, be it at work, idle or still starting."""
        self._workers.remove(worker)
        worker.process.kill()
        worker.process.join()
        worker.connection.close()
