"""A few threads that share work, and that an interrupt leaves in order."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Generic, TypeVar, final

from sandboxsdk.host import Worker

T = TypeVar("T")


@final
class Crew(Generic[T]):
    """Does jobs in threads; who gives them waits when too many are on their way.

    Its queues are simple ones: an exception that comes into a call of theirs (Ctrl-C) loses no lock
    that somebody waits for.

    Args:
        do: what is done with each job, in any order and by several threads; raises nothing.
        threads: how many, from the first job on; where none can be had, whoever gives a job does
            it.
        waiting: how many jobs may be on their way.
    """

    def __init__(self, do: Callable[[T], None], *, threads: int, waiting: int) -> None:
        self._do, self._threads, self._waiting = do, threads, waiting
        # In a tuple each; None ends the work of one thread.
        self._jobs: SimpleQueue[tuple[T] | None] = SimpleQueue()
        self._room: SimpleQueue[None] = SimpleQueue()
        for _ in range(waiting):
            self._room.put(None)
        self._workers: list[Worker] = []
        self._collecting = threading.Lock()

    @property
    def at_work(self) -> bool:
        """Whether it was given anything yet."""
        return bool(self._workers)

    def give(self, job: T) -> None:
        """Have it done. After an exception that came into it, nothing but `end` may be called."""
        while len(self._workers) < self._threads:
            worker = Worker(self._run)
            self._workers.append(worker)
            try:
                worker.start()
            except OSError:
                worker.give_up()
        if all(worker.is_over for worker in self._workers):
            self._do(job)
            return
        self._room.get()
        self._jobs.put((job,))

    def wait(self) -> None:
        """Wait until all that was given is done."""
        if self._workers:
            # One after the other: two would each hold what the other waits for.
            with self._collecting:
                for _ in range(self._waiting):
                    self._room.get()
                for _ in range(self._waiting):
                    self._room.put(None)

    def end(self) -> None:
        """Wait for what is on its way, and let go of the threads."""
        for worker in self._workers:
            # After an interrupt there may be one that was never started.
            worker.give_up()
            self._jobs.put(None)
        for worker in self._workers:
            worker.wait()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                self._do(job[0])
            finally:
                self._room.put(None)
