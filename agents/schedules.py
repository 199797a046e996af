"""How beta, the probability that the data writes, falls during training.

Each schedule is called with progress, the fraction of training done, in [0, 1], and gives beta in
[0, 1]. Source of the forms: Lin et al. 2020, section 3.3, arXiv:2009.07253; its r is 1 / base here.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Constant:
    """The same throughout: 1 is data alone, 0 is the student alone.

    Attributes:
        value: beta, in [0, 1].
    """

    value: float = 1.0

    def __post_init__(self) -> None:
        _check("value", self.value)

    def __call__(self, progress: float) -> float:
        """`value`."""
        del progress
        return self.value


@dataclass(frozen=True)
class Linear:
    """From 1 to `final` along a line.

    Attributes:
        final: beta at the end, in [0, 1].
    """

    final: float = 0.0

    def __post_init__(self) -> None:
        _check("final", self.final)

    def __call__(self, progress: float) -> float:
        """1 - (1 - final) progress."""
        return 1.0 - (1.0 - self.final) * progress


@dataclass(frozen=True)
class Exponential:
    """From 1 to 1 / base; with base 200 the student writes four fifths of a run's prefixes.

    Attributes:
        base: at least 1.
    """

    base: float = 200.0

    def __post_init__(self) -> None:
        if self.base < 1:
            raise ValueError(f"base must be at least 1, so that beta <= 1, got {self.base}")

    def __call__(self, progress: float) -> float:
        """base^-progress."""
        return self.base**-progress


Schedule = Constant | Linear | Exponential


def _check(name: str, beta: float) -> None:
    if not 0 <= beta <= 1:
        raise ValueError(f"{name} must be in [0, 1], got {beta}")
