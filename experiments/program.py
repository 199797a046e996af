"""Program `textgen`: the command line, with signals answered before anything slow is imported."""

import os
import signal
import sys

from textgen_experiments.runs.interrupts import INTERRUPTS, SIGNALS, answer_signals


def main() -> None:
    """Run the command line; Ctrl-C and SIGTERM end it in one line at any moment."""
    answer_signals()
    from textgen_experiments.cli import main as run_command_line  # seconds, for PyTorch

    try:
        run_command_line()
    finally:
        if INTERRUPTS.is_stopping():  # the libraries' own endings might wait for what was cut off
            sys.stderr.flush()
            os._exit(INTERRUPTS.exit_code)
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL)
