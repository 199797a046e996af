"""Answers to Ctrl-C and SIGTERM: training stops between two updates, everything else at once.

An exception that a signal raises at any moment can leave a lock or a queue in a state that nothing
wakes up from. Training therefore looks at a flag. What is imported here is small, so that signals
are answered from the first moment of the program.

From the end of the command on its exit code is decided: a signal then ends what the interpreter and
the libraries still do, and changes no code.
"""

import atexit
import os
import select
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from threading import Thread
from time import monotonic, sleep
from types import FrameType
from typing import Any, NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM)
SAME_SIGNAL_SECONDS = (
    0.5  # in which a launcher hands on what the terminal has sent to all processes
)
UNWINDING_SECONDS = 1.5  # until a command that does not end by itself is ended
WATCH_EVERY = 0.05  # seconds
DEFECT = 1  # exit code of the interpreter after an exception
GOES_ON = "; the same command goes on from the last checkpoint"
SHOW_CURSOR = b"\x1b[?25h\n"  # a progress bar hides it


@dataclass
class Interrupts:
    """State of the answers to signals in this process.

    Attributes:
        received: the first signal that came; None so far.
        received_at: the moment it came, by the monotonic clock.
        can_unwind: True where a signal raises `KeyboardInterrupt`; False where it ends the program.
        is_awaited: True where the work looks at `received` by itself.
        advice: end of the last line, after "stopped".
        is_told: True once the last line is written.
        final_code: exit code of the command once it is done; None before.
    """

    received: int | None = None
    received_at: float = 0.0
    can_unwind: bool = False
    is_awaited: bool = False
    advice: str = ""
    is_told: bool = False
    final_code: int | None = None

    @property
    def exit_code(self) -> int:
        """Exit code of the program: that of the finished command, or by the shell's convention."""
        if self.final_code is not None:
            return self.final_code
        return 128 + (self.received or signal.SIGINT)

    @property
    def message(self) -> str:
        """Last line of a program that was stopped."""
        return "stopped" + self.advice

    def answer(self, number: int, frame: FrameType | None) -> None:
        """Answer a signal: a handler for `signal.signal`.

        A signal that follows the first one at once is the same one, which came by two ways.
        """
        del frame
        if self.received is not None:
            if monotonic() - self.received_at >= SAME_SIGNAL_SECONDS:
                self.end()
            return
        self.received, self.received_at = number, monotonic()
        if self.is_awaited:
            return
        if self.can_unwind:
            raise KeyboardInterrupt
        self.end()

    def obey(self, number: int, frame: FrameType | None) -> None:
        """Answer a signal as a process that another one began: without a line, after any number."""
        del frame
        self.received = self.received or number
        if not self.is_awaited:
            self.end_silently()

    def watch(self, pipe: int) -> None:
        """End the program where the main thread does not, in a library's long call or for good.

        Args:
            pipe: file descriptor from which a byte for each signal is read.
        """
        while (first := os.read(pipe, 1)[0]) not in SIGNALS:
            pass  # a plugin may handle others
        begun, idle = monotonic(), 0.0
        while idle < UNWINDING_SECONDS:
            ready, _, _ = select.select([pipe], [], [], WATCH_EVERY)
            if not ready:
                idle = 0.0 if self.is_awaited else idle + WATCH_EVERY
            elif os.read(pipe, 1)[0] in SIGNALS and monotonic() - begun >= SAME_SIGNAL_SECONDS:
                sleep(WATCH_EVERY)  # the main thread answers before if it can
                break
        self.received = self.received or first
        self.end()

    def tell(self) -> None:
        """Write the last line of the program, once."""
        if not self.is_told:
            cursor = SHOW_CURSOR if os.isatty(2) else b""
            os.write(2, cursor + f"textgen: {self.message}\n".encode())
        self.is_told = True

    def end(self) -> NoReturn:
        """End the program without any cleaning up, with its last line unless it is done."""
        if self.final_code is None:
            self.tell()
        self.end_silently()

    def end_silently(self) -> NoReturn:
        """End the program without any cleaning up and without a line."""
        os._exit(self.exit_code)

    def is_stopping(self) -> bool:
        """Return True once a signal has asked the work to stop."""
        return self.received is not None

    @contextmanager
    def unwinding(self, *, is_resumable: bool) -> Iterator[None]:
        """Let the first signal in the block raise `KeyboardInterrupt`."""
        self.can_unwind, self.advice = True, GOES_ON if is_resumable else ""
        try:
            yield
        finally:
            self.can_unwind = False

    @contextmanager
    def awaited(self) -> Iterator[None]:
        """Let the first signal in the block do no more than be noted.

        Raises:
            KeyboardInterrupt: a signal came after the block had looked for the last time.
        """
        self.is_awaited = True
        try:
            yield
        finally:
            self.is_awaited = False
        if self.is_stopping():
            raise KeyboardInterrupt

    @contextmanager
    def finishing(self) -> Iterator[None]:
        """Decide the program's exit code by how the block ends.

        After a signal the program ends with the block: the libraries' own endings might wait for
        what was cut off.
        """
        try:
            yield
        except SystemExit as stop:
            other = DEFECT if stop.code else 0  # what the interpreter makes of None and of text
            self._finish(stop.code if isinstance(stop.code, int) else other)
            raise
        except BaseException:
            if self.is_stopping():
                self.end()
            raise
        self._finish(0)

    def _finish(self, code: int) -> None:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:  # as after `>&-` in a shell
                with suppress(OSError):  # the interpreter's own flush says so
                    stream.flush()
        self.final_code = code
        if self.is_stopping():
            self.end_silently()


INTERRUPTS = Interrupts()
"""The answers in this process; without effect until `answer_signals`."""


def answer_signals() -> None:
    """Answer SIGINT and SIGTERM from now on, those held back too, until the process ends."""
    atexit.register(_ignore_signals)  # the first to be registered is the last to be called
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    Thread(target=INTERRUPTS.watch, args=(reading,), daemon=True).start()
    for number in SIGNALS:
        signal.signal(number, INTERRUPTS.answer)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    sys.unraisablehook = _without_interrupts(sys.unraisablehook)


def _ignore_signals() -> None:
    """Ignore signals while the interpreter takes itself apart, when no handler can run any more."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _without_interrupts(hook: Any) -> Any:  # noqa: ANN401 - the type of a hook has no public name
    """Return `hook` but for interrupts that reach a finalizer, which the watch makes good."""

    def show(unraisable: Any) -> None:  # noqa: ANN401 - as above
        if not isinstance(unraisable.exc_value, KeyboardInterrupt):
            hook(unraisable)

    return show
