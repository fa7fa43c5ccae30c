"""How far a share that was counted, or a mean, may be from the true one."""

from __future__ import annotations

import math

import numpy as np

NORMAL_95 = 1.959964  # standard deviations either side of the mean that hold 95% of a normal distribution


def wilson(successes: float, count: int) -> tuple[float, float]:
    """The 95% interval of a share of which `successes` of `count` independent trials tell (Wilson 1927).

    A half of a success is a tie. It is never empty, and stays within 0 and 1, where the normal approximation does not.
    """
    share, z2 = successes / count, NORMAL_95**2
    middle = (share + z2 / (2 * count)) / (1 + z2 / count)
    reach = NORMAL_95 * math.sqrt(share * (1 - share) / count + z2 / (4 * count**2)) / (1 + z2 / count)
    return max(0.0, middle - reach), min(1.0, middle + reach)


def mean_error(value_N: np.ndarray) -> float | None:
    """Half the 95% interval of the mean of independent values; None: one value alone has none."""
    return NORMAL_95 * float(value_N.std(ddof=1)) / math.sqrt(len(value_N)) if len(value_N) > 1 else None


def ties(difference_N: np.ndarray) -> float:
    """The share of differences that are 0."""
    return float((difference_N == 0).mean())
