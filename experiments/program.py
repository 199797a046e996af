"""Program `textgen`: the command line, with signals answered before anything slow is imported."""

import signal


def main() -> None:
    """Run the command line; Ctrl-C and SIGTERM end it in one line at any moment."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    from textgen_experiments.runs.interrupts import INTERRUPTS, answer_signals

    answer_signals()
    from textgen_experiments.cli import main as run_command_line  # seconds, for PyTorch

    with INTERRUPTS.finishing():
        run_command_line()
