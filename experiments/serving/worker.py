"""The thread that owns the model: texts wait in a queue, join its batch and are written.

A future stands for each text. Whoever cancels it frees the text's place, in the queue or in the
batch, before the next step.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from threading import Condition, Thread

from textgen_env.generation.open_batch import OpenBatch, OpenText

JOINING_SHARE = 8  # a waiting crowd joins once an eighth of the slots is free: read together


class QueueFullError(RuntimeError):
    """More texts than may wait at once."""


class WorkerStoppedError(RuntimeError):
    """Text that is not written, because the server stops."""


class DecodingWorker:
    """Thread that writes the texts of all requests in one batch.

    Args:
        batch: the model's batch; no other thread may use it from now on.
        max_waiting: most texts that wait while all slots are taken, at least 0.
    """

    def __init__(self, batch: OpenBatch, max_waiting: int) -> None:
        self._batch = batch
        self.capacity = batch.slots + max_waiting  # texts that run or wait
        self._waiting: deque[tuple[OpenText, Future[OpenText]]] = deque()
        self._running: dict[OpenText, Future[OpenText]] = {}
        self._changed = Condition()
        self._is_closed = self._is_stopped = False
        self._thread = Thread(target=self._run, name="decoding", daemon=True)

    @property
    def num_waiting(self) -> int:
        """Number of texts that wait for a slot."""
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        """Number of texts that are being written."""
        return len(self._running)

    def start(self) -> None:
        """Begin to write texts; called once."""
        self._thread.start()

    def submit(self, texts: Sequence[OpenText]) -> list[Future[OpenText]]:
        """Let texts wait for their turn, all of them or none.

        Returns:
            A future for each text, which is done when the text is written.

        Raises:
            QueueFullError: so many texts must not wait now.
            WorkerStoppedError: the worker takes no texts any more.
        """
        with self._changed:
            if self._is_closed:
                raise WorkerStoppedError("the server stops")
            if self._unfinished + len(texts) > self.capacity:
                self._forget_cancelled()
            if (unfinished := self._unfinished) + len(texts) > self.capacity:
                raise QueueFullError(
                    f"texts that run or wait must be at most {self.capacity}, got {len(texts)} "
                    f"beside {unfinished}"
                )
            tickets = [(text, Future[OpenText]()) for text in texts]
            self._waiting.extend(tickets)
            self._changed.notify()
        return [future for _, future in tickets]

    def close(self) -> None:
        """Take no texts any more; those that run or wait are written."""
        with self._changed:
            self._is_closed = True

    def stop(self, timeout: float = 10.0) -> None:
        """End the thread after its step; texts that are not done get a `WorkerStoppedError`.

        Args:
            timeout: seconds to wait for it.
        """
        with self._changed:
            self._is_closed = self._is_stopped = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join(timeout)

    @property
    def _unfinished(self) -> int:
        return self.num_waiting + self.num_running

    def _run(self) -> None:
        """Write texts until the worker is stopped."""
        try:
            while self._has_work():
                self._admit()
                if self._running:
                    self._step()
        finally:
            with self._changed:
                self._is_closed = True
                self._running |= dict(self._waiting)
                self._waiting.clear()
            self._fail(list(self._running), WorkerStoppedError("the server has stopped"))

    def _has_work(self) -> bool:
        """Wait until there is a text, and return False once the worker is stopped."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_stopped or self._unfinished)
            return not self._is_stopped

    def _admit(self) -> None:
        """Let texts leave whose future is cancelled, and waiting ones join in their order."""
        with self._changed:
            self._forget_cancelled()
            running = self._running.keys()
            self._batch.leave([text for text in self._batch.texts if text not in running])
            count = joining_count(self._batch.room, len(self._waiting), self._batch.slots)
            joining = dict(self._waiting.popleft() for _ in range(count))
            self._running |= joining
        if not joining:
            return
        try:
            self._batch.join(list(joining))
        except Exception as error:  # the server goes on without these texts
            self._fail(joining, error)

    def _step(self) -> None:
        """Write a token of each text, and settle the texts that have ended."""
        try:
            ended = self._batch.step()
        except Exception as error:  # the server goes on with the next texts
            self._batch.clear()
            self._fail(list(self._running), error)
            return
        for text in ended:
            future = self._take(text)
            if future.set_running_or_notify_cancel():
                future.set_result(text)

    def _fail(self, texts: Iterable[OpenText], error: Exception) -> None:
        """Let the futures of running texts raise `error`."""
        for text in texts:
            future = self._take(text)
            if future.set_running_or_notify_cancel():
                future.set_exception(error)

    def _take(self, text: OpenText) -> Future[OpenText]:
        """Return the future of a running text, which runs no more."""
        with self._changed:
            return self._running.pop(text)

    def _forget_cancelled(self) -> None:
        """Drop the texts whose future is cancelled; the lock is held."""
        self._waiting = deque(each for each in self._waiting if not each[1].cancelled())
        for text in [text for text, future in self._running.items() if future.cancelled()]:
            del self._running[text]


def joining_count(room: int, waiting: int, slots: int) -> int:
    """Return how many texts join now: sources that are read together cost less than one by one.

    Args:
        room: free slots.
        waiting: texts that wait.
        slots: all slots.
    """
    is_worth_it = room >= waiting or room * JOINING_SHARE >= slots
    return min(room, waiting) if is_worth_it else 0
