"""How beta, the probability that the data writes, falls during training.

Each schedule takes progress, the fraction of training done, in [0, 1], and returns beta in [0, 1].
Source of the forms: Lin et al. 2020, section 3.3, arXiv:2009.07253; r there is 1 / base here.
"""

from collections.abc import Callable

Schedule = Callable[[float], float]


def constant(progress: float, *, value: float) -> float:
    """Always `value`."""
    del progress
    return value


def linear(progress: float, *, final: float = 0.0) -> float:
    """From 1 to `final` along a line."""
    return 1.0 - (1.0 - final) * progress


def exponential(progress: float, *, base: float = 200.0) -> float:
    """base^-progress: from 1 to 1 / base; with 200, four fifths of a run's prefixes are the student's."""
    return base**-progress
