"""Schedules of beta, the probability that the data or the expert writes, over training.

Each schedule is called with progress, the fraction of training done, in [0, 1], and gives beta in
[0, 1]. Source of the forms: Lin et al. 2020, section 3.3, arXiv:2009.07253; its r is 1 / base here.
"""

import math
from dataclasses import dataclass

from textgen_env.bounds import check_above, check_at_least, check_shares


@dataclass(frozen=True)
class Constant:
    """Constant beta: at 1 the data writes everything, at 0 the student.

    Attributes:
        value: beta, in [0, 1].
    """

    value: float = 1.0

    def __post_init__(self) -> None:
        check_shares(self, "value")

    def __call__(self, progress: float) -> float:
        """Return `value` whatever the progress."""
        del progress
        return self.value


@dataclass(frozen=True)
class Linear:
    """Beta that falls from 1 to `final` along a line.

    Attributes:
        final: beta at the end, in [0, 1].
    """

    final: float = 0.0

    def __post_init__(self) -> None:
        check_shares(self, "final")

    def __call__(self, progress: float) -> float:
        """Return 1 - (1 - final) progress."""
        return 1.0 - (1.0 - self.final) * progress


@dataclass(frozen=True)
class Exponential:
    """Beta that falls from 1 to 1 / base; with base 200 its mean over a run is a fifth.

    Attributes:
        base: at least 1.
    """

    base: float = 200.0

    def __post_init__(self) -> None:
        check_at_least(self, "below it beta would be above 1", base=1)

    def __call__(self, progress: float) -> float:
        """Return base^-progress at `progress`, in [0, 1]."""
        return self.base**-progress


@dataclass(frozen=True)
class ReverseSigmoid:
    """Beta that falls from almost 1 to almost `final`, mostly around the middle of training.

    Attributes:
        steepness: above 0; the slope in the middle is a quarter of it, for `final` 0.
        final: beta at the end, in [0, 1].
    """

    steepness: float = 20.0
    final: float = 0.0

    def __post_init__(self) -> None:
        check_shares(self, "final")
        check_above(self, "otherwise beta would not fall", steepness=0)

    def __call__(self, progress: float) -> float:
        """Return final + (1 - final) / (1 + e^(steepness (progress - 1/2)))."""
        falling = 0.5 - 0.5 * math.tanh(0.5 * self.steepness * (progress - 0.5))
        return self.final + (1.0 - self.final) * falling


@dataclass(frozen=True)
class Indicator:
    """Beta that is 1 at first, then 0: the parameter-free choice of DAgger.

    Attributes:
        until: share of training that counts as its first iteration, in [0, 1].

    Source: Ross et al. 2011, section 3, arXiv:1011.0686.
    """

    until: float = 0.05

    def __post_init__(self) -> None:
        check_shares(self, "until")

    def __call__(self, progress: float) -> float:
        """Return 1 while progress is below `until`, 0 from there on."""
        return float(progress < self.until)


Schedule = Constant | Linear | Exponential | ReverseSigmoid | Indicator
