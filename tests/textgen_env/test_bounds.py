"""Tests of the checks that records share."""

import math
from dataclasses import dataclass

import numpy as np
import pytest

from textgen_env.bounds import (
    check_above,
    check_at_least,
    check_finite,
    check_positive_shares,
    check_shares,
)


@dataclass(frozen=True)
class Numbers:
    """A record with a field of each kind."""

    count: int = 1
    limit: int | None = None
    weight: float = 0.5
    share: float | None = None
    part: float = 1.0

    def __post_init__(self) -> None:
        check_at_least(self, "use one", count=1)
        check_at_least(self, limit=2)
        check_above(self, weight=0)
        check_shares(self, "share")
        check_positive_shares(self, "1 is for all", "part")


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"count": 0}, ValueError, r"^count must be at least 1, got 0; use one$"),
        ({"count": 2.5}, TypeError, r"^count must be a whole number, at least 1, got 2.5; use one"),
        ({"count": True}, TypeError, r"^count must be a whole number"),
        ({"count": None}, TypeError, r"^count must be a whole number, at least 1, got None"),
        ({"count": "3"}, TypeError, r"got '3'"),
        ({"count": 2**63}, ValueError, r"^count must be below 2\^63, got one of 64 bits"),
        ({"limit": 1}, ValueError, r"^limit must be at least 2 or None, got 1$"),
        ({"weight": 0}, ValueError, r"^weight must be above 0, got 0$"),
        ({"weight": math.nan}, ValueError, r"^weight must be above 0, got nan$"),
        ({"weight": math.inf}, ValueError, r"^weight must be finite and above 0, got inf$"),
        ({"share": 1.5}, ValueError, r"^share must be in \[0, 1\] or None, got 1.5$"),
        ({"part": 0}, ValueError, r"^part must be in \(0, 1\], got 0; 1 is for all$"),
        ({"part": 1.5}, ValueError, r"^part must be in \(0, 1\], got 1.5; 1 is for all$"),
        ({"share": math.nan}, ValueError, r"^share must be in \[0, 1\] or None, got nan$"),
    ],
)
def test_numbers_outside_their_bounds_are_refused(values, error, message):
    with pytest.raises(error, match=message):
        Numbers(**values)


def test_numbers_within_their_bounds_are_accepted():
    Numbers(count=np.int64(3), limit=2, weight=np.float32(0.1), share=1)
    Numbers(count=2**63 - 1, limit=None, share=None)
    check_finite(Numbers(), "count", "limit", "weight", "share")
