"""Answers to Ctrl-C and SIGTERM: training stops between two updates, everything else at once.

An exception that a signal raises at any moment can leave a lock or a queue in a state that nothing
wakes up from. Training therefore looks at a flag. What is imported here is small, so that signals
are answered from the first moment of the program.
"""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Timer
from types import FrameType
from typing import Any, NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM)
UNWINDING_SECONDS = 2.0  # until a command that does not end by itself is ended
GOES_ON = "; the same command goes on from the last checkpoint"
SHOW_CURSOR = b"\x1b[?25h\n"  # a progress bar hides it


@dataclass
class Interrupts:
    """State of the answers to signals in this process.

    Attributes:
        received: the first signal that came; None so far.
        can_unwind: True where a signal raises `KeyboardInterrupt`; False where it ends the program.
        is_awaited: True where the work looks at `received` by itself.
        advice: end of the last line, after "stopped".
    """

    received: int | None = None
    can_unwind: bool = False
    is_awaited: bool = False
    advice: str = ""

    @property
    def exit_code(self) -> int:
        """Exit code of the program, by the shell's convention."""
        return 128 + (self.received or signal.SIGINT)

    @property
    def message(self) -> str:
        """Last line of a program that was stopped."""
        return "stopped" + self.advice

    def answer(self, number: int, frame: FrameType | None) -> None:
        """Answer a signal: a handler for `signal.signal`."""
        del frame
        first, self.received = self.received is None, self.received or number
        if first and self.is_awaited:
            return
        if not first or not self.can_unwind:
            self.end()
        watchdog = Timer(UNWINDING_SECONDS, self.end)
        watchdog.daemon = True
        watchdog.start()
        raise KeyboardInterrupt

    def end(self) -> NoReturn:
        """End the program with its last line, without any cleaning up."""
        cursor = SHOW_CURSOR if os.isatty(2) else b""
        os.write(2, cursor + f"textgen: {self.message}\n".encode())
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


INTERRUPTS = Interrupts()
"""The answers in this process; without effect until `answer_signals`."""


def answer_signals() -> None:
    """Answer SIGINT and SIGTERM from now on, until the process ends."""
    for number in SIGNALS:
        signal.signal(number, INTERRUPTS.answer)
    sys.unraisablehook = _without_interrupts(sys.unraisablehook)


def _without_interrupts(hook: Any) -> Any:  # noqa: ANN401 - the type of a hook has no public name
    """Return `hook` but for interrupts that reach a finalizer, which the watchdog makes good."""

    def show(unraisable: Any) -> None:  # noqa: ANN401 - as above
        if not isinstance(unraisable.exc_value, KeyboardInterrupt):
            hook(unraisable)

    return show


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Hold back Ctrl-C within the block; processes that it starts never see it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
