"""Program `textgen`: the command line, with signals answered before anything slow is imported."""

# Built in: `signal` imports other modules, and a signal meanwhile would not be answered.
import _signal  # pyright: ignore[reportMissingImports] - typeshed does not know it


def main() -> None:
    """Run the command line; Ctrl-C and SIGTERM end it in one line at any moment."""
    _signal.pthread_sigmask(_signal.SIG_BLOCK, {_signal.SIGINT, _signal.SIGTERM})
    from textgen_experiments.runs.interrupts import INTERRUPTS, answer_signals

    answer_signals()
    import sys

    from textgen_experiments.command_line.answers import answered, prepare_environment

    with INTERRUPTS.finishing():
        if answered(sys.argv[1:]):
            return
        from textgen_experiments.runs.other_work import CoreClock

        clock = CoreClock.start()
        prepare_environment(sys.argv[1:])
        from textgen_experiments.cli import main as run_command_line  # seconds, for PyTorch
        from textgen_experiments.runs.malloc import spare_imports

        spare_imports()
        run_command_line(busy_elsewhere=clock.busy_elsewhere())
