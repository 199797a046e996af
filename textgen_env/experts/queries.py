"""Number and cost of the queries that an expert answers, by which algorithms are compared."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Queries:
    """Number and cost of the queries that an expert has answered.

    Attributes:
        forwards: parallel passes, steps, and sets of sources decoded.
        tokens: states at which the expert answered; padding does not count.
        seconds: time spent on the answers, measured on the host.
    """

    forwards: int = 0
    tokens: int = 0
    seconds: float = 0.0

    def __add__(self, other: "Queries") -> "Queries":
        """Return the number and cost of both together."""
        return Queries(
            self.forwards + other.forwards,
            self.tokens + other.tokens,
            self.seconds + other.seconds,
        )
